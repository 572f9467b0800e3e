"""Measure what CoPE attention costs against what people know: bars, curves, a report."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from x_transformers.attend import Attend
from x_transformers.x_transformers import CoPE as UpstreamCoPE

from xcope import cli
from xcope.benchmark.bars import bars
from xcope.benchmark.breakdown import breakdowns, buffers
from xcope.benchmark.curves import curves
from xcope.benchmark.measure import processor, versions
from xcope.benchmark.report import Measured, write
from xcope.benchmark.saturation import saturation
from xcope.benchmark.variants import variants
from xcope.benchmark.workloads import FULL, QUICK
from xcope.errors import FlagError

EXAMPLES = """
python scripts/benchmark.py cope
python scripts/benchmark.py cope --threads 1 --out /tmp/one-thread
python scripts/benchmark.py cope --quick --out /tmp/quick
"""

T = TypeVar("T")


def upstream(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """x-transformers' CoPE attention."""
    module = UpstreamCoPE(q.shape[-1], q.shape[1], len(table))
    module.pos_emb = torch.nn.Parameter(table.detach())
    out, _ = Attend(causal=True, heads=q.shape[1], cope=module)(q, k, v)
    return out  # type: ignore[no-any-return]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__ or "", EXAMPLES)
    parser.add_argument("what", choices=["cope"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/cope-cpu"))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short inputs, once: whether it runs, not what it costs",
    )
    return parser


def told(found: Iterable[T]) -> list[T]:
    """All of them, each printed as soon as it is there."""
    kept = []
    for one in found:
        print(one, flush=True)
        kept.append(one)
    return kept


def main(args: argparse.Namespace) -> None:
    """Print each figure as it is measured, then write the report."""
    if args.threads < 1:
        raise FlagError("threads", f"--threads {args.threads} must be at least 1")
    torch.set_num_threads(args.threads)
    scale = QUICK if args.quick else FULL
    begun = time.perf_counter()
    print(f"{processor()}; threads: {args.threads}; {versions()}", flush=True)

    measured = Measured(
        command=shlex.join(["python", *sys.argv]),
        scale=scale,
        bars=told(bars(upstream, scale, args.threads)),
        saturation=told(saturation(scale)),
        variants=told(variants(scale)),
        points=told(curves(upstream, scale, args.threads)),
        breakdowns=told(breakdowns(scale)),
        buffers=buffers(scale),
        seconds=time.perf_counter() - begun,
    )
    write(args.out, measured)
    print(f"\nWritten: {args.out}")


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main))
