"""Measure a trained model on the test splits of its task, also with other options of the task."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from xcope import cli
from xcope.config import Config, build_task, load_config
from xcope.errors import FlagError
from xcope.tasks import Task
from xcope.training import RunError, RunFolder, device_for, load_run, results_table, tally

EXAMPLES = """
python scripts/evaluate.py runs/x
python scripts/evaluate.py runs/x sparse task.sparse_blanks=64
python scripts/evaluate.py runs/x evaluate.batches=32 evaluate.seed=5 --json results.json
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(f"{__doc__}", EXAMPLES)
    parser.add_argument("run", type=cli.path, help="run folder of scripts/train.py")
    parser.add_argument(
        "what",
        nargs="*",
        metavar="split | key=value",
        help="test splits (default: all); task.<option>=value and evaluate.<option>=value change "
        "the test data",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the results, also by position, here; - for stdout"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    splits = [word for word in args.what if "=" not in word]
    trained, model = load_run(args.run)
    config = with_test_data(args.run, [word for word in args.what if "=" in word])
    task = task_for(config, model.num_tokens)
    tallies = tally(
        model,
        task,
        batches=config.evaluate.batches,
        batch_size=config.evaluate.batch_size,
        seed=config.evaluate.seed,
        device=device_for(args.device),
        splits=splits or None,
    )
    results = {split: one.metrics(task) for split, one in tallies.items()}
    if args.json is not None:
        by_position = {split: one.by_position(task) for split, one in tallies.items()}
        text = json.dumps({"splits": results, "by_position": by_position}, indent=2) + "\n"
        if args.json == "-":
            print(text, end="")
            return
        cli.path(args.json).write_text(text, encoding="utf-8")
    Console().print(results_table(results, task, f"{args.run}: {trained.label()}"))


def with_test_data(run_dir: Path, overrides: list[str]) -> Config:
    """The run's config with other test data; lengths are checked against the model later."""
    for override in overrides:
        if not override.startswith(("task.", "evaluate.")):
            raise RunError(
                f"{override}: a trained model cannot be changed; keys that may be given begin "
                "with task. or evaluate."
            )
    return load_config(RunFolder(run_dir).config, ["model.max_seq_len=null", *overrides])


def task_for(config: Config, num_tokens: int) -> Task:
    """The task of ``config``, if a model with that many tokens can read it."""
    task = build_task(config)
    if task.num_tokens != num_tokens:
        raise FlagError(
            "task",
            f"the model was trained with {num_tokens} tokens, and this task has "
            f"{task.num_tokens}: only options that keep the vocabulary can be changed",
        )
    return task


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
