"""Train one model from a config, or go on with an interrupted run."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import shlex
import sys
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from xcope import cli
from xcope.config import Config, build_task, load_config
from xcope.training import (
    Result,
    RunError,
    RunFolder,
    default_run_dir,
    reporter,
    results_table,
    train,
)

EXAMPLES = """
python scripts/train.py configs/experiments/text.yaml
python scripts/train.py configs/experiments/text.yaml model.position=alibi train.seed=3
python scripts/train.py configs/experiments/text.yaml model.position=cope --out runs/x
python scripts/train.py --resume runs/x
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(f"{__doc__}", EXAMPLES)
    parser.add_argument("config", nargs="?", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of it")
    parser.add_argument(
        "--out", type=cli.path, help="run folder (default: runs/<config>-<scheme>-seed<k>)"
    )
    parser.add_argument(
        "--resume",
        type=cli.path,
        metavar="RUN",
        help="go on with this run, from its last checkpoint",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    return parser


def main(args: argparse.Namespace) -> None:
    """Train, then print the results and what to do with them."""
    config, run_dir = which_run(args)
    result = train(
        config,
        run_dir,
        resume=args.resume is not None,
        overwrite=args.overwrite,
        reporter=reporter(),
    )
    if PartialState().is_main_process:
        show(config, run_dir, result)


def which_run(args: argparse.Namespace) -> tuple[Config, Path]:
    """The config and the folder that the command line means."""
    if args.resume is None:
        if args.config is None:
            raise RunError("name a config to train, or --resume RUN")
        config = load_config(args.config, args.overrides)
        return config, args.out or default_run_dir(config, Path(args.config))
    if args.config is not None or args.out is not None or args.overwrite:
        raise RunError(
            "--resume takes everything from the run folder: leave out the config, key=value, "
            "--out and --overwrite"
        )
    run = RunFolder(args.resume)
    run.require()
    return load_config(run.config, data=False), run.path


def show(config: Config, run_dir: Path, result: Result) -> None:
    """Print a table of the results and the next commands."""
    console = Console(highlight=False, markup=False)
    title = f"{config.label()}: {result.params:,} parameters, {result.steps} steps"
    console.print(results_table(result.splits, build_task(config), title))
    folder = shlex.quote(str(run_dir))
    console.print(
        f"\nEverything is in {folder}. Next:\n"
        f"  python scripts/evaluate.py {folder}\n"
        f"  python scripts/sample.py {folder}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
