"""``xcope gates``: what a trained model looks at, as a picture and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcope import cli
from xcope.errors import FlagError

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.tasks import Task

EXAMPLES = """
xcope gates runs/x
xcope gates runs/x --sample sparse --index 3
xcope gates runs/copy --text ". 3 . 7 | 3 7"
xcope gates runs/text --text "def f(x): return x" --out /tmp/gates
"""


@cli.command(EXAMPLES)
@click.argument("run", type=cli.RUN)
@click.option("--text", help="what the model reads, as its task writes it")
@click.option(
    "--sample", metavar="SPLIT", help="a sequence of this split (default: the first test split)"
)
@click.option("--index", type=int, default=0, show_default=True, help="which sequence of the split")
@click.option(
    "--out", type=cli.PATH, help="folder for gates.png and gates.html (default: RUN/gates)"
)
@cli.device_option
@cli.trust_option
def command(
    run: Path, text: str | None, sample: str | None, index: int, out: Path | None, device: str
) -> None:
    """Look inside a trained model: what its gates count, its positions, its attention.

    RUN is the folder of a run.
    """
    if text is not None and sample is not None:
        raise click.UsageError("--text is not allowed with --sample: give one of them")

    import torch
    from rich.console import Console

    from xcope.config import build_task
    from xcope.inspect import page, picture, summary_table, token_labels, trace
    from xcope.training import BrokenModelError, device_for, load_run
    from xcope.training.evaluation import broken_weights

    config, model = load_run(run)
    task = build_task(config)
    ids = to_read(config, task, text, sample, index)
    traced = trace(model.to(device_for(device)), torch.tensor(ids), labels=token_labels(task, ids))
    if broken := broken_weights(model):
        raise BrokenModelError(f"the model is broken: {broken}")
    title = f"{run.resolve().name}: {task.name}, {config.label()}"
    Console().print(summary_table(traced, title))
    out = run / "gates" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    picture(traced, out / "gates.png", title=title)
    written = (out / "gates.html").write_text(page(traced, title=title), encoding="utf-8")
    print(f"Written: {out / 'gates.png'}, {out / 'gates.html'} ({written / 1e6:.1f} MB)")


def to_read(
    config: Config, task: Task, text: str | None, split: str | None, index: int
) -> list[int]:
    """The tokens that the model reads: those of a text, or a sequence of a split."""
    if text is not None:
        ids = task.encode(text)
        if not ids:
            raise FlagError("text", "the text is empty: give at least one token")
        return ids
    if index < 0:
        raise FlagError("index", f"index={index} is not allowed: 0 or more")
    split = task.splits[0] if split is None else split
    try:
        batch = task.batch(split, 1, config.evaluate.seed, index)
    except FlagError as error:
        if error.flag == "split":
            raise
        raise FlagError(error.flag, f"{error}; or give --text TEXT, which needs no data") from error
    drawn: list[int] = batch.tokens[0].tolist()
    return drawn
