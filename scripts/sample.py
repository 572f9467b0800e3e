"""Let a trained model continue a prompt."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import sys

from xcope import cli
from xcope.config import build_task
from xcope.errors import FlagError
from xcope.tasks import Task
from xcope.training import device_for, example_prompt, load_run, rest_of_sequence, sample

EXAMPLES = r"""
python scripts/sample.py runs/text --prompt "def " --tokens 200 --temperature 0.8 --top-k 40
python scripts/sample.py runs/copy --prompt ". 3 . 7 |" --temperature 0
python scripts/sample.py runs/copy --seed 1
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(f"{__doc__}", EXAMPLES)
    parser.add_argument("run", type=cli.path, help="run folder of scripts/train.py")
    parser.add_argument("--prompt", help="default: the beginning of a test sequence")
    parser.add_argument(
        "--tokens",
        type=int,
        help="how many to add (default: to the end of a sequence, 200 at most)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the prompt and what the model makes of it."""
    config, model = load_run(args.run)
    task = build_task(config)
    prompt = example(task, args.seed) if args.prompt is None else task.encode(args.prompt)
    new = sample(
        model.to(device_for(args.device)),
        prompt,
        rest_of_sequence(task, prompt) if args.tokens is None else args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
    )
    print(task.decode(prompt + new))


def example(task: Task, seed: int) -> list[int]:
    """The beginning of a test sequence, if the task's data are still there."""
    try:
        return example_prompt(task, seed)
    except FlagError as error:
        raise FlagError(error.flag, f"{error}; or give --prompt TEXT, which needs no data") from (
            error
        )


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
