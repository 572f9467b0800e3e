"""Look inside a trained model: what its gates count, its positions, its attention."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import sys

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xcope import cli
from xcope.config import Config, build_task
from xcope.errors import FlagError
from xcope.inspect import HeadSummary, Trace, page, picture, summary, token_labels, trace
from xcope.inspect.labels import visible
from xcope.tasks import Task
from xcope.training import BrokenModelError, device_for, load_run
from xcope.training.evaluation import broken_weights

EXAMPLES = """
python scripts/gates.py runs/x
python scripts/gates.py runs/x --sample sparse --index 3
python scripts/gates.py runs/copy --text ". 3 . 7 | 3 7"
python scripts/gates.py runs/text --text "def f(x): return x" --out /tmp/gates
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(f"{__doc__}", EXAMPLES)
    parser.add_argument("run", type=cli.path, help="run folder of scripts/train.py")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--text", help="what the model reads, as its task writes it")
    which.add_argument(
        "--sample", metavar="SPLIT", help="a sequence of this split (default: the first test split)"
    )
    parser.add_argument(
        "--index", type=int, default=0, help="which sequence of the split (default: 0)"
    )
    parser.add_argument(
        "--out", type=cli.path, help="folder for gates.png and gates.html (default: RUN/gates)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser


def main(args: argparse.Namespace) -> None:
    """Print a line for each head, and write the picture and the page."""
    config, model = load_run(args.run)
    task = build_task(config)
    ids = tokens(args, config, task)
    traced = trace(
        model.to(device_for(args.device)), torch.tensor(ids), labels=token_labels(task, ids)
    )
    if broken := broken_weights(model):
        raise BrokenModelError(f"the model is broken: {broken}")
    title = f"{args.run.resolve().name}: {task.name}, {config.label()}"
    Console().print(table(traced, title))
    out = args.run / "gates" if args.out is None else args.out
    out.mkdir(parents=True, exist_ok=True)
    picture(traced, out / "gates.png", title=title)
    written = (out / "gates.html").write_text(page(traced, title=title), encoding="utf-8")
    print(f"Written: {out / 'gates.png'}, {out / 'gates.html'} ({written / 1e6:.1f} MB)")


def tokens(args: argparse.Namespace, config: Config, task: Task) -> list[int]:
    """What the model reads."""
    if args.text is not None:
        ids = task.encode(args.text)
        if not ids:
            raise FlagError("text", "the text is empty: give at least one token")
        return ids
    if args.index < 0:
        raise FlagError("index", f"index={args.index} is not allowed: 0 or more")
    split = task.splits[0] if args.sample is None else args.sample
    try:
        batch = task.batch(split, 1, config.evaluate.seed, args.index)
    except FlagError as error:
        if error.flag == "split":
            raise
        raise FlagError(error.flag, f"{error}; or give --text TEXT, which needs no data") from error
    drawn: list[int] = batch.tokens[0].tolist()
    return drawn


def table(traced: Trace, title: str) -> Table:
    """A line for each head; columns that no head fills are left out."""
    lines = [cells(one) for one in summary(traced)]
    if len({line["scheme"] for line in lines}) == 1:  # the title names it
        lines = [line | {"scheme": ""} for line in lines]
    shown = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in columns:
        words = name.startswith(("scheme", "counts", "attends"))
        shown.add_column(name, justify="left" if words else "right")
    for line in lines:
        shown.add_row(*(Text(line[name] or "–") for name in columns))
    return shown


def cells(one: HeadSummary) -> dict[str, str]:
    """A head's line, column by column; nothing where it has none."""
    counts = one.saturated is not None  # to a table: its bias follows from the positions
    bias = "" if one.bias is None or counts else f"{one.bias[0]:.1f} … {one.bias[1]:.1f}"
    return {
        "layer,\nhead": f"{one.layer}, {one.head}",
        "scheme": one.scheme,
        "mean\ngate": "" if one.mean_gate is None else f"{one.mean_gate:.2f}",
        "satu-\nrated": "" if one.saturated is None else f"{one.saturated:.0%}",
        "counts\n(mean gate)": named(one.counted),
        "bias": bias,
        "attends to\n(share)": named(one.attended),
        "tokens\nback": f"{one.distance:.1f}",
    }


def named(labels: tuple[tuple[str, float], ...]) -> str:
    """``. .98, 3 .12``."""
    return ", ".join(
        f"{visible(label)} {f'{value:.2f}'.removeprefix('0')}" for label, value in labels
    )


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
