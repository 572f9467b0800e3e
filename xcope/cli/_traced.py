"""A trained model that has read a text, for the commands that look inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcope.errors import FlagError

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.inspect import Trace
    from xcope.tasks import Task


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which text the model reads: ``text``, or the sequence ``index`` of the split ``sample``."""
    for option in (
        click.option(
            "--index", type=int, default=0, show_default=True, help="which sequence of the split"
        ),
        click.option(
            "--sample",
            metavar="SPLIT",
            help="a sequence of this split (default: the first test split)",
        ),
        click.option("--text", help="what the model reads, as its task writes it"),
    ):
        command = option(command)
    return command


def traced(
    run: Path, device: str, text: str | None, sample: str | None, index: int
) -> tuple[Trace, str]:
    """What the model of a run computes on a text, and a title for it.

    Raises:
        BrokenModelError: its weights are not finite.
        FlagError: a text or a sequence that there is not.
    """
    if text is not None and sample is not None:
        raise click.UsageError("--text is not allowed with --sample: give one of them")
    import torch

    from xcope.config import build_task
    from xcope.inspect import token_labels, trace
    from xcope.training import BrokenModelError, device_for, load_run
    from xcope.training.evaluation import broken_weights

    config, model = load_run(run)
    task = build_task(config)
    ids = to_read(config, task, text, sample, index)
    found = trace(model.to(device_for(device)), torch.tensor(ids), labels=token_labels(task, ids))
    if broken := broken_weights(model):
        raise BrokenModelError(f"the model is broken: {broken}")
    return found, f"{run.resolve().name}: {task.name}, {config.label()}"


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
