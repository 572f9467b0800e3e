"""``xcope train``: one run, or the rest of one that was interrupted."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcope import cli, invocation
from xcope.cli import _complete

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.training import Result

EXAMPLES = """
xcope train configs/experiments/text.yaml
xcope train configs/experiments/text.yaml model.position=alibi train.seed=3
xcope train configs/experiments/text.yaml model.position=cope --out runs/x
xcope train --resume runs/x
xcope train --resume runs/x train.steps=2000 train.longer=rewarm
"""


@cli.command(EXAMPLES)
@click.argument("config", required=False, type=_complete.CONFIG)
@click.argument("overrides", nargs=-1, metavar="[key=value]...", type=_complete.OVERRIDE)
@click.option("--out", type=cli.PATH, help="run folder (default: runs/<config>-<scheme>-seed<k>)")
@click.option(
    "--resume", type=cli.PATH, metavar="RUN", help="go on with this run, from its last checkpoint"
)
@click.option("--overwrite", is_flag=True, help="replace a run that is there")
@cli.trust_option
def command(
    config: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    overwrite: bool,
) -> None:
    """Train one model from a config, or go on with an interrupted run.

    With --resume, key=value changes what the weights do not depend on (evaluate.*,
    train.log_every, train.checkpoint_every, train.device, import) and the length:
    train.steps=N with train.longer=rewarm (a second warm-up and cosine over the added steps) or
    train.longer=stretch (from now on the rate of a run that was planned for N steps).
    """
    if resume is None:
        loaded, run_dir = to_train(config, overrides, out)
    else:
        changes = [*([] if config is None else [config]), *overrides]
        if out is not None or overwrite or not all("=" in text for text in changes):
            raise click.UsageError(
                "--resume takes everything from the run folder but what may change (key=value, "
                "see --help): leave out the config, --out and --overwrite"
            )
        cli.require_run(resume)
        from xcope.training import to_go_on

        loaded, run_dir = to_go_on(resume, changes), resume
    from accelerate import PartialState

    from xcope.training import reporter, train

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

    if path is None:
        raise click.UsageError("name a config to train, or --resume RUN")
    config = load_config(path, overrides)
    from xcope.training import default_run_dir

    return config, out or default_run_dir(config, Path(path))


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
