"""``xcope compare``: the runs of a sweep side by side, and their report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xcope import cli, invocation, lazy
from xcope.cli import _complete, _show
from xcope.errors import did_you_mean, listing

EXAMPLES = """
xcope compare configs/quickstart.yaml
xcope compare configs/quickstart.yaml 'sweep.train.seed=[0, 1, 2]' --out runs/seeds
xcope compare configs/quickstart.yaml train.steps=100 --jobs 1 --threads 2
xcope compare configs/quickstart.yaml 'sweep.model.position=[none, cope]' --overwrite
xcope compare configs/quickstart.yaml 'tune.train.lr=[5e-4, 1e-3, 2e-3]' baseline=alibi
xcope compare configs/quickstart.yaml --show sequence_accuracy --show tokens_per_second
"""


class ShownOption(click.Option):
    """``--show``, whose help lists what there is to show, once it is read."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option, and its help with the names."""
        names = ", ".join(_show.registered()["shown"])
        self.help = f"{str(self.help).partition(':')[0]}: {names}; may be given several times"
        return super().get_help_record(ctx)


@cli.command(EXAMPLES)
@click.argument("config", type=_complete.CONFIG)
@click.argument("overrides", nargs=-1, metavar="[key=value]...", type=_complete.OVERRIDE)
@click.option("--out", type=cli.PATH, help="folder of the comparison (default: runs/<config>)")
@click.option("--jobs", type=int, help="runs side by side (default: the usable cores)")
@click.option("--threads", type=int, default=1, show_default=True, help="threads of each run")
@click.option("--overwrite", is_flag=True, help="replace a comparison that is in the folder")
@click.option(
    "--show",
    cls=ShownOption,
    multiple=True,
    metavar="NAME",
    help="a metric or a column that tables, reports and plots show beside the usual ones",
)
@cli.trust_option
def command(
    config: str, overrides: tuple[str, ...], out: Path | None, show: tuple[str, ...], **how: Any
) -> None:
    """Train every run of a config's sweep, and compare them: tables, plots, a page.

    The same command goes on with a comparison that was stopped.
    """
    from rich.console import Console

    from xcope.compare.run import finished, server
    from xcope.config import load_config

    loaded = load_config(config, overrides, sweep=True, build=False)
    check_flags(show, loaded.plugins, jobs=how["jobs"], threads=how["threads"])
    out = out or Path(loaded.out or f"runs/{Path(config).stem}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200, record=True)
    form = {"width": console.width, "colors": console.color_system}
    key = finished.key(loaded, {"show": show, "command": again(), **how, **form})
    if not how["overwrite"] and (printed := finished.printed(out, key)):
        note = f"{printed.runs} of {printed.runs} runs are complete already, and so is the report"
        print(note, file=sys.stderr)
        sys.stdout.write(printed.text)
        return
    server.start()
    with lazy.importing():
        from xcope.compare import CompareFailedError, compare

    comparison = compare(loaded, out, show=show, command=again(), **how)
    for shown in (*comparison.answers, "", *comparison.tables):
        console.print(shown)
    console.print(f"\nReport: {comparison.out / 'report.html'}", markup=False, soft_wrap=True)
    if not comparison.failed and not comparison.failed_tuning:
        text = console.export_text(styles=console.is_terminal)
        finished.keep(out, key, finished.Printed(len(comparison.outcomes), text))
    if comparison.failed_tuning:
        names = ", ".join(one.run.name for one in comparison.failed_tuning)
        console.print(f"Tuning runs that failed: {names}", markup=False, soft_wrap=True)
    if comparison.failed:
        reasons = [f"\n  {one.run.name}: {one.reason}" for one in comparison.failed]
        raise CompareFailedError(
            f"{len(reasons)} of {len(comparison.outcomes)} runs failed; their logs are in "
            f"{comparison.out / 'logs'}:{''.join(reasons)}"
        )


def check_flags(show: Sequence[str], plugins: Sequence[Any], **numbers: int | None) -> None:
    """Refuse what `xcope.compare.compare` would refuse, before torch is imported.

    Raises:
        click.UsageError: a number below 1, a name that nothing has.
    """
    for flag, number in numbers.items():
        if number is not None and number < 1:
            raise click.UsageError(f"--{flag} {number}: it takes at least 1")
    known = [] if plugins or not show else _show.registered()["shown"]
    for name in show if known else ():
        if name not in known:
            raise click.UsageError(
                f"--show {name}: there is no such metric or column; choose among {listing(known)}"
                f"{did_you_mean(name, known)}"
            )


def again() -> str:
    """What was typed, without --overwrite: the command that goes on with the comparison."""
    return shlex.join(word for word in invocation.typed() if word != "--overwrite")
