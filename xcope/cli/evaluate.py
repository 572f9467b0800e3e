"""``xcope evaluate``: a trained model on test data, those of its run or others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcope import cli
from xcope.errors import FlagError
from xcope.files import expanded

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.tasks import Task

EXAMPLES = """
xcope evaluate runs/x
xcope evaluate runs/x sparse task.sparse_blanks=64
xcope evaluate runs/x evaluate.batches=32 evaluate.seed=5 --json results.json
"""


@cli.command(EXAMPLES)
@click.argument("run", type=cli.PATH)
@click.argument("what", nargs=-1, metavar="[split | key=value]...")
@click.option(
    "--json", "file", metavar="FILE", help="write the results, also by position; - for stdout"
)
@cli.device_option
def command(run: Path, what: tuple[str, ...], file: str | None, device: str) -> None:
    """Measure a trained model on the test splits of its task, also with other options of the task.

    RUN is the folder of a run. Without names of test splits all are measured;
    task.<option>=value and evaluate.<option>=value change the test data.
    """
    from rich.console import Console

    from xcope.training import device_for, load_run, results_table, tally

    splits = [word for word in what if "=" not in word]
    trained, model = load_run(run)
    config = with_test_data(run, [word for word in what if "=" in word])
    task = task_for(config, model.num_tokens)
    tallies = tally(
        model,
        task,
        batches=config.evaluate.batches,
        batch_size=config.evaluate.batch_size,
        seed=config.evaluate.seed,
        device=device_for(device),
        splits=splits or None,
    )
    results = {split: one.metrics(task) for split, one in tallies.items()}
    if file is not None:
        by_position = {split: one.by_position(task) for split, one in tallies.items()}
        text = json.dumps({"splits": results, "by_position": by_position}, indent=2) + "\n"
        if file == "-":
            print(text, end="")
            return
        expanded(file).write_text(text, encoding="utf-8")
    Console().print(results_table(results, task, f"{run}: {trained.label()}"))


def with_test_data(run: Path, overrides: Sequence[str]) -> Config:
    """The run's config with other test data; lengths are checked against the model later."""
    from xcope.config import load_config
    from xcope.training import RunError, RunFolder

    for override in overrides:
        if not override.startswith(("task.", "evaluate.")):
            raise RunError(
                f"{override}: a trained model cannot be changed; keys that may be given begin "
                "with task. or evaluate."
            )
    return load_config(RunFolder(run).config, ["model.max_seq_len=null", *overrides])


def task_for(config: Config, num_tokens: int) -> Task:
    """The task of ``config``, if a model with that many tokens can read it."""
    from xcope.config import build_task

    task = build_task(config)
    if task.num_tokens != num_tokens:
        raise FlagError(
            "task",
            f"the model was trained with {num_tokens} tokens, and this task has "
            f"{task.num_tokens}: only options that keep the vocabulary can be changed",
        )
    return task
