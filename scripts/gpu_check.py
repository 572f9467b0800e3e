"""Check a GPU: correctness against float64, then what CoPE costs there; a report of both.

Ends with 1 if a result is not correct, with 0 if only a bar of cost is missed.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from x_transformers.attend import Attend
from x_transformers.x_transformers import CoPE as UpstreamCoPE

from xcope import cli
from xcope.benchmark.gpu import bars, bias_cases, biases, cope_cases, report, workloads
from xcope.benchmark.gpu.compare import Case, reason
from xcope.benchmark.gpu.curve import curve
from xcope.benchmark.gpu.figures import Figures
from xcope.benchmark.gpu.kernels import kernels
from xcope.benchmark.gpu.measure import folder_name, versions
from xcope.benchmark.gpu.model_cases import model_cases
from xcope.benchmark.gpu.more import more
from xcope.benchmark.gpu.processes import side_by_side
from xcope.benchmark.gpu.record import OutOfTimeError, Record
from xcope.benchmark.gpu.workloads import Bench
from xcope.environment import device_name
from xcope.errors import FlagError

EXAMPLES = """
python scripts/gpu_check.py
python scripts/gpu_check.py --only correctness
python scripts/gpu_check.py --only cope bars --out /tmp/cope
python scripts/gpu_check.py --full
python scripts/gpu_check.py --quick
"""

PARTS = ("cope", "bars", "flex", "biases", "curve", "models", "kernels")
"""In the order in which they run; the last only if asked for, or in full."""
GROUPS = {"correctness": ("cope", "flex", "models"), "benchmark": ("bars", "biases", "curve")}
MEASURES: dict[str, Callable[[Bench], Figures]] = {
    "bars": bars.bars,
    "biases": biases.biases,
    "curve": curve,
    "kernels": kernels,
    "more": more,
}
SLOW_TO_COMPILE: dict[str, tuple[str, Callable[[Bench], list[Case]]]] = {
    "bars": ("cope", bars.slow_to_compile),
    "biases": ("flex", biases.slow_to_compile),
}
"""What is compiled before it is measured, and beside which cases, if they run."""
CASES_AT_MOST = 150.0  # seconds for the cases of a part
MEMORY_OF_A_JOB = 5 * 2**30


class NotCorrectError(Exception):
    """Some results are not what they should be; the report says which."""

    exit_code = 1


def upstream(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """x-transformers' CoPE attention, with gradients to the table."""
    module = UpstreamCoPE(q.shape[-1], q.shape[1], len(table))
    del module.pos_emb
    module.pos_emb = table
    out, _ = Attend(causal=True, heads=q.shape[1], cope=module)(q, k, v)
    return out  # type: ignore[no-any-return]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--only", nargs="+", choices=[*GROUPS, *PARTS], metavar="PART",
        help=f"run these alone: {', '.join([*GROUPS, *PARTS])}",
    )  # fmt: skip
    parser.add_argument("--out", type=cli.path, help="folder (default: results/gpu-<name>)")
    parser.add_argument("--full", action="store_true", help="measure more, with no bars")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny shapes, on a CPU where there is no GPU: whether it works, not what it costs",
    )
    parser.add_argument(
        "--minutes", type=float, default=15, help="begin nothing new after these (default: 15)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="processes that compare side by side (default: by cores and memory); 0: none but this",
    )
    return parser


def chosen(args: argparse.Namespace) -> list[str]:
    """The parts to run, in order."""
    named = args.only or list(GROUPS)
    parts = {part for name in named for part in GROUPS.get(name, (name,))}
    parts |= {"kernels"} if args.full else set()
    return [part for part in PARTS if part in parts] + ["more"] * args.full


def cases(part: str, device: torch.device, quick: bool) -> list[Case]:
    """What a part of correctness compares."""
    name, on_cuda = device.type, device.type == "cuda"
    if part == "cope":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        backends = ["triton"] if on_cuda else ["tiled", "triton"] if interpreted else ["tiled"]
        calls = [case for backend in backends for case in cope_cases.cope_cases(name, backend)]
        return [cope_cases.small(case) if quick else case for case in calls]
    if part == "flex":
        biased = bias_cases.bias_cases(name, "flex" if on_cuda else "tiled")
        return [bias_cases.small(case) if quick else case for case in biased]
    return list(model_cases(name))


def jobs_for(args: argparse.Namespace, device: torch.device) -> int:
    """As many processes as the machine has room for."""
    if args.jobs is not None or device.type != "cuda":
        return args.jobs or 0
    room = torch.cuda.get_device_properties(device).total_memory // MEMORY_OF_A_JOB
    return int(max(1, min((os.cpu_count() or 1) - 2, room)))


def compare(record: Record, part: str, found: Sequence[Case], jobs: int) -> None:
    """Run the cases of a part."""
    record.say(f"{report.PARTS[part]}: {len(found)} cases, {jobs or 1} at a time")
    for results in side_by_side(found, jobs, CASES_AT_MOST):
        record.compare([one for one in results if one.part in GROUPS["correctness"]])


def run_parts(record: Record, quick: bool, jobs: int) -> None:
    """Every part that was asked for, in order; after each, what is there is written down."""
    scale = workloads.QUICK if quick else workloads.FULL
    bench = Bench(record.device, scale, upstream)
    warm: dict[str, list[Case]] = {}
    for part, (host, made) in SLOW_TO_COMPILE.items():
        if jobs and part in record.parts:
            warm[host if host in record.parts else part] = made(bench)
    for part in record.parts:
        found = warm.get(part, [])
        if part not in MEASURES:
            found = [*found, *cases(part, record.device, quick)]
        if found:
            compare(record, part, found, jobs)
        if part in MEASURES:
            measure(record, part, bench)
        report.write(record)


def measure(record: Record, part: str, bench: Bench) -> None:
    """Take the figures of a part; what fails as a whole is told and left out."""
    try:
        for figure in MEASURES[part](bench):
            record.measure(figure)
    except OutOfTimeError:
        raise
    except Exception as error:
        record.leave(f"{report.PARTS[part]}: {reason(error)}")


def command() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])


def main(args: argparse.Namespace) -> None:
    """Check what was asked for."""
    on_cuda = torch.cuda.is_available()
    if not on_cuda and not args.quick:
        raise FlagError(
            "quick", "there is no CUDA device here: only --quick runs without one, on tiny shapes"
        )
    device = torch.device("cuda" if on_cuda else "cpu")
    name = folder_name(device)
    out = args.out or Path(f"runs/gpu-{name}-quick" if args.quick else f"results/gpu-{name}")
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out, command(), device, chosen(args), args.quick, args.minutes)
    record.say(f"{device_name(device)}; {versions()}")
    try:
        run_parts(record, args.quick, jobs_for(args, device))
    except OutOfTimeError as error:
        record.leave(str(error))
        report.write(record)
    finish(record)


def finish(record: Record) -> None:
    """Say how it went.

    Raises:
        NotCorrectError: a result is not.
    """
    for figure in record.missed:
        record.say(f"bar of cost: {figure}")
    print(f"\nWritten: {record.out / 'README.md'}")
    if record.failures:
        failed = {(one.case, one.dtype, one.backend) for one in record.failures}
        raise NotCorrectError(
            f"{len(failed)} cases are not correct, see {record.out / 'README.md'}"
        )


if __name__ == "__main__":
    sys.exit(cli.run(parser(), main, errors=(NotCorrectError,)))
