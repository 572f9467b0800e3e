"""``xcope train``: one run, or the rest of one that was interrupted."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcope import cli, invocation

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.training import Result

EXAMPLES = """
xcope train configs/experiments/text.yaml
xcope train configs/experiments/text.yaml model.position=alibi train.seed=3
xcope train configs/experiments/text.yaml model.position=cope --out runs/x
xcope train --resume runs/x
"""


@cli.command(EXAMPLES)
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option("--out", type=cli.PATH, help="run folder (default: runs/<config>-<scheme>-seed<k>)")
@click.option(
    "--resume", type=cli.PATH, metavar="RUN", help="go on with this run, from its last checkpoint"
)
@click.option("--overwrite", is_flag=True, help="replace a run that is there")
def command(
    config: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    overwrite: bool,
) -> None:
    """Train one model from a config, or go on with an interrupted run."""
    from accelerate import PartialState

    from xcope.training import reporter, train

    loaded, run_dir = (
        to_train(config, overrides, out)
        if resume is None
        else to_go_on(resume, alone=config is None and out is None and not overwrite)
    )
    result = train(
        loaded,
        run_dir,
        resume=resume is not None,
        overwrite=overwrite,
        reporter=reporter(),
    )
    if PartialState().is_main_process:
        show(loaded, run_dir, result)


def to_train(path: str | None, overrides: tuple[str, ...], out: Path | None) -> tuple[Config, Path]:
    """The config of a new run, and its folder."""
    from xcope.config import load_config
    from xcope.training import RunError, default_run_dir

    if path is None:
        raise RunError("name a config to train, or --resume RUN")
    config = load_config(path, overrides)
    return config, out or default_run_dir(config, Path(path))


def to_go_on(resume: Path, *, alone: bool) -> tuple[Config, Path]:
    """The config and the folder of a run that was interrupted."""
    from xcope.config import load_config
    from xcope.training import RunError, RunFolder

    if not alone:
        raise RunError(
            "--resume takes everything from the run folder: leave out the config, key=value, "
            "--out and --overwrite"
        )
    run = RunFolder(resume)
    run.require()
    return load_config(run.config, data=False), run.path


def show(config: Config, run_dir: Path, result: Result) -> None:
    """Print a table of the results and the next commands."""
    from rich.console import Console

    from xcope.config import build_task
    from xcope.training import results_table

    console = Console(highlight=False, markup=False)
    title = f"{config.label()}: {result.params:,} parameters, {result.steps} steps"
    console.print(results_table(result.splits, build_task(config), title))
    folder = shlex.quote(str(run_dir))
    console.print(
        f"\nEverything is in {folder}. Next:\n"
        f"  {invocation.command('evaluate')} {folder}\n"
        f"  {invocation.command('sample')} {folder}",
        soft_wrap=True,
    )
