"""Measure what positions cost over what people know: bars, pictures, a report.

``cope`` is about CoPE attention, ``schemes`` about every scheme.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where benchmarks/ is

from benchmarks.cope import report as cope_report
from benchmarks.cope import workloads as cope_workloads
from benchmarks.cope.breakdown import breakdowns, buffers
from benchmarks.cope.costs import bars, curves, saturation, variants
from benchmarks.report import machine
from benchmarks.schemes import report as schemes_report
from benchmarks.schemes import workloads as schemes_workloads
from benchmarks.schemes.costs import costs
from xcope import cli
from xcope.errors import FlagError
from xcope.positions import parse, schemes

EXAMPLES = """
python scripts/benchmark.py cope
python scripts/benchmark.py schemes
python scripts/benchmark.py cope --threads 1 --out /tmp/one-thread
python scripts/benchmark.py schemes --only rotary alibi --out /tmp/two
python scripts/benchmark.py schemes --quick --out /tmp/quick
"""

MOST_THREADS = 4096
T = TypeVar("T")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__ or "", EXAMPLES)
    parser.add_argument("what", choices=["cope", "schemes"])
    parser.add_argument(
        "--only", nargs="+", metavar="SCHEME", help="of the schemes, measure only these"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=cli.path, help="folder (default: results/<what>-cpu)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short inputs, once: whether it runs, not what it costs",
    )
    return parser


def printed(found: Iterable[T]) -> list[T]:
    """All of them in a list, each printed as soon as it is there."""
    kept = []
    for one in found:
        print(one, flush=True)
        kept.append(one)
    return kept


def measure_cope(args: argparse.Namespace, out: Path) -> None:
    """Measure CoPE attention, print each figure as it comes, write the report."""
    if args.only:
        raise FlagError("only", f"--only is for the benchmark of schemes, not of {args.what}")
    scale = cope_workloads.QUICK if args.quick else cope_workloads.FULL
    announce(args.threads)
    begun = time.perf_counter()
    measured = cope_report.Measured(
        command=command(),
        scale=scale,
        bars=printed(bars(scale, args.threads)),
        saturation=printed(saturation(scale)),
        variants=printed(variants(scale)),
        points=printed(curves(scale, args.threads)),
        breakdowns=printed(breakdowns(scale)),
        buffers=buffers(scale),
        seconds=time.perf_counter() - begun,
    )
    cope_report.write(out, measured)


def measure_schemes(args: argparse.Namespace, out: Path) -> None:
    """Measure every scheme, print what each costs as it comes, write the report."""
    names = args.only or list(schemes())
    for name in names:
        parse(name)  # refuses what is no scheme
    scale = schemes_workloads.QUICK if args.quick else schemes_workloads.FULL
    announce(args.threads)
    begun = time.perf_counter()
    measured = schemes_report.Measured(
        command=command(),
        scale=scale,
        costs=printed(costs(names, scale, args.threads)),
        seconds=time.perf_counter() - begun,
    )
    schemes_report.write(out, measured)


def command() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])


def announce(threads: int) -> None:
    """Use so many threads, and print what it runs on."""
    torch.set_num_threads(threads)
    print(machine(), flush=True)


def main(args: argparse.Namespace) -> None:
    """Measure what was asked for."""
    if args.threads < 1:
        raise FlagError("threads", f"--threads {args.threads} must be at least 1")
    if args.threads > MOST_THREADS:
        raise FlagError("threads", f"--threads {args.threads} must be at most {MOST_THREADS}")
    out = args.out or Path(f"results/{args.what}-cpu")
    measure = measure_cope if args.what == "cope" else measure_schemes
    measure(args, out)
    print(f"\nWritten: {out}")


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
