"""Measure what positions cost over what people know: bars, pictures, a report.

``cope`` is about CoPE attention, ``schemes`` about every scheme, both on long rows; ``small`` is
about whole train steps, short rows and commands.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where benchmarks/ is

from benchmarks.cope import report as cope_report
from benchmarks.cope import workloads as cope_workloads
from benchmarks.cope.breakdown import breakdowns, scratch
from benchmarks.cope.costs import bars, curves, saturation, variants
from benchmarks.report import machine
from benchmarks.schemes import report as schemes_report
from benchmarks.schemes import workloads as schemes_workloads
from benchmarks.schemes.costs import costs
from benchmarks.small import report as small_report
from benchmarks.small import workloads as small_workloads
from benchmarks.small.breakdown import breakdowns as small_breakdowns
from benchmarks.small.costs import attention_bars, attention_pairs, command_bars, train_steps
from xcope import cli
from xcope.errors import FlagError
from xcope.positions import parse, schemes
from xcope.training import keep_freed_memory

EXAMPLES = """
python scripts/benchmark.py cope
python scripts/benchmark.py schemes
python scripts/benchmark.py small
python scripts/benchmark.py cope --threads 1 --out /tmp/one-thread
python scripts/benchmark.py schemes --only rotary,alibi --out /tmp/two
python scripts/benchmark.py schemes --quick --out /tmp/quick
"""

MOST_THREADS = 4096
T = TypeVar("T")


def printed(found: Iterable[T]) -> list[T]:
    """All of them in a list, each printed as soon as it is there."""
    kept = []
    for one in found:
        print(one, flush=True)
        kept.append(one)
    return kept


def measure_cope(out: Path, threads: int, quick: bool) -> None:
    """Measure CoPE attention, print each figure as it comes, write the report."""
    scale = cope_workloads.QUICK if quick else cope_workloads.FULL
    announce(threads)
    begun = time.perf_counter()
    measured = cope_report.Measured(
        command=typed(),
        scale=scale,
        bars=printed(bars(scale, threads)),
        saturation=printed(saturation(scale)),
        variants=printed(variants(scale)),
        points=printed(curves(scale, threads)),
        breakdowns=printed(breakdowns(scale)),
        scratch=scratch(scale),
        seconds=time.perf_counter() - begun,
    )
    cope_report.write(out, measured)


def measure_schemes(out: Path, threads: int, quick: bool, names: Sequence[str]) -> None:
    """Measure every scheme, print what each costs as it comes, write the report."""
    for name in names:
        parse(name)  # refuses what is no scheme
    scale = schemes_workloads.QUICK if quick else schemes_workloads.FULL
    announce(threads)
    begun = time.perf_counter()
    measured = schemes_report.Measured(
        command=typed(),
        scale=scale,
        costs=printed(costs(names, scale, threads)),
        seconds=time.perf_counter() - begun,
    )
    schemes_report.write(out, measured)


def measure_small(out: Path, threads: int, quick: bool) -> None:
    """Measure train steps and short rows, with one thread and with more; commands; write it."""
    scale = small_workloads.QUICK if quick else small_workloads.FULL
    begun = time.perf_counter()
    keep_freed_memory()  # as training does
    figures = []
    for count in sorted({1, threads}):
        announce(count)
        steps = printed(train_steps(scale))
        attention = list(attention_pairs(scale))
        bars = printed(attention_bars(attention))
        pairs = [*(pair for one in steps for pair in one.pairs), *attention]
        every = [*(bar for one in steps for bar in one.bars), *bars]
        profiles = printed(small_breakdowns(pairs, every, scale.profiles))
        figures.append(small_report.Figures(count, steps, bars, profiles))
    measured = small_report.Measured(
        command=typed(),
        scale=scale,
        figures=figures,
        commands=printed(command_bars(scale)),
        seconds=time.perf_counter() - begun,
    )
    small_report.write(out, measured)


def typed() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])


def announce(threads: int) -> None:
    """Use so many threads, and print what it runs on."""
    torch.set_num_threads(threads)
    print(machine(), flush=True)


@cli.command(EXAMPLES)
@click.argument("what", type=click.Choice(["cope", "schemes", "small"]))
@click.option(
    "--only",
    type=cli.NamesType(),
    metavar="SCHEME,…",
    help="of the schemes, measure only these",
)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--out", type=cli.PATH, help="folder (default: results/<what>-cpu)")
@click.option(
    "--quick", is_flag=True, help="short inputs, once: whether it runs, not what it costs"
)
def command(what: str, only: list[str] | None, threads: int, out: Path | None, quick: bool) -> None:
    """Measure what positions cost over what people know: bars, pictures, a report.

    ``cope`` is about CoPE attention, ``schemes`` about every scheme, both on long rows; ``small``
    is about whole train steps, short rows and commands, with one thread and with ``--threads``.
    """
    if threads < 1:
        raise FlagError("threads", f"--threads {threads} must be at least 1")
    if threads > MOST_THREADS:
        raise FlagError("threads", f"--threads {threads} must be at most {MOST_THREADS}")
    if what != "schemes" and only:
        raise FlagError("only", f"--only is for the benchmark of schemes, not of {what}")
    out = out or Path(f"results/{what}-cpu")
    if what == "cope":
        measure_cope(out, threads, quick)
    elif what == "small":
        measure_small(out, threads, quick)
    else:
        measure_schemes(out, threads, quick, only or list(schemes()))
    print(f"\nWritten: {out}")


if __name__ == "__main__":
    sys.exit(cli.run(command))
