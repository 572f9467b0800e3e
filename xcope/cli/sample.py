"""``xcope sample``: a trained model goes on with a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcope import cli
from xcope.errors import FlagError

if TYPE_CHECKING:
    from xcope.tasks import Task

EXAMPLES = r"""
xcope sample runs/text --prompt "def " --tokens 200 --temperature 0.8 --top-k 40
xcope sample runs/copy --prompt ". 3 . 7 |" --temperature 0
xcope sample runs/copy --seed 1
"""


@cli.command(EXAMPLES)
@click.argument("run", type=cli.RUN)
@click.option("--prompt", help="default: the beginning of a test sequence")
@click.option(
    "--tokens", type=int, help="how many to add (default: to the end of a sequence, 200 at most)"
)
@click.option(
    "--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest"
)
@click.option("--top-k", type=int, help="draw among the k likeliest (default: all)")
@click.option("--seed", type=int, default=0, show_default=True, help="of the draws")
@cli.device_option
@cli.trust_option
def command(
    run: Path,
    prompt: str | None,
    tokens: int | None,
    temperature: float,
    top_k: int | None,
    seed: int,
    device: str,
) -> None:
    """Let a trained model continue a prompt.

    RUN is the folder of a run.
    """
    from xcope.config import build_task
    from xcope.training import device_for, load_run, rest_of_sequence, sample

    config, model = load_run(run)
    task = build_task(config)
    ids = example(task, seed) if prompt is None else task.encode(prompt)
    new = sample(
        model.to(device_for(device)),
        ids,
        rest_of_sequence(task, ids) if tokens is None else tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    print(task.decode(ids + new))


def example(task: Task, seed: int) -> list[int]:
    """The beginning of a test sequence, if the task's data are still there."""
    from xcope.training import example_prompt

    try:
        return example_prompt(task, seed)
    except FlagError as error:
        raise FlagError(error.flag, f"{error}; or give --prompt TEXT, which needs no data") from (
            error
        )
