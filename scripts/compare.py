"""Train every run of a config's sweep, and compare them: tables, plots, a page."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from xcope import cli
from xcope.compare import CompareFailedError, compare
from xcope.compare.report.columns import COLUMNS
from xcope.config import load_config
from xcope.training.metrics import METRICS

EXAMPLES = """
python scripts/compare.py configs/quickstart.yaml
python scripts/compare.py configs/quickstart.yaml 'sweep.train.seed=[0, 1, 2]' --out runs/seeds
python scripts/compare.py configs/quickstart.yaml train.steps=100 --jobs 1 --threads 2
python scripts/compare.py configs/quickstart.yaml 'sweep.model.position=[none, cope]' --overwrite
python scripts/compare.py configs/quickstart.yaml 'tune.train.lr=[5e-4, 1e-3, 2e-3]' baseline=alibi
python scripts/compare.py configs/quickstart.yaml --show sequence_accuracy --show tokens_per_second
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(
        f"{__doc__} The same command goes on with a comparison that was stopped.", EXAMPLES
    )
    parser.add_argument("config", help="YAML file with a sweep")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of it")
    parser.add_argument(
        "--out", type=cli.path, help="folder of the comparison (default: runs/<config>)"
    )
    parser.add_argument("--jobs", type=int, help="runs side by side (default: the usable cores)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default: 1)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a comparison that is in the folder"
    )
    parser.add_argument(
        "--show",
        action="append",
        default=[],
        metavar="NAME",
        help="a metric or a column that tables, reports and plots show beside the usual ones: "
        f"{', '.join([*METRICS, *COLUMNS])}; may be given several times",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Compare, and print the tables."""
    config = load_config(args.config, args.overrides, sweep=True, data=False)
    comparison = compare(
        config,
        args.out or Path(config.out or f"runs/{Path(args.config).stem}"),
        jobs=args.jobs,
        threads=args.threads,
        overwrite=args.overwrite,
        show=args.show,
        command=command(),
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    for shown in (*comparison.answers, "", *comparison.tables):
        console.print(shown)
    console.print(f"\nReport: {comparison.out / 'report.html'}", markup=False, soft_wrap=True)
    if comparison.failed_tuning:
        names = ", ".join(one.run.name for one in comparison.failed_tuning)
        console.print(f"Tuning runs that failed: {names}", markup=False, soft_wrap=True)
    if comparison.failed:
        reasons = [f"\n  {one.run.name}: {one.reason}" for one in comparison.failed]
        raise CompareFailedError(
            f"{len(reasons)} of {len(comparison.outcomes)} runs failed; their logs are in "
            f"{comparison.out / 'logs'}:{''.join(reasons)}"
        )


def command() -> str:
    """What was typed, without --overwrite: the command that goes on with the comparison."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--overwrite"]
    return shlex.join(["python", sys.argv[0], *arguments])


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
