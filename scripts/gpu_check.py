"""Check a GPU: correctness against float64, then what CoPE costs there; a report of both.

Ends with 1 if a result is not correct, with 0 if only a bar of cost is missed.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where benchmarks/ is

from benchmarks.gpu import costs, workloads
from benchmarks.gpu.compare import Case, Compared
from benchmarks.gpu.figures import Bench, Figures
from benchmarks.gpu.processes import side_by_side
from benchmarks.gpu.report import PARTS as TITLES
from benchmarks.gpu.report import OutOfTimeError, Record, folder_name, packages, write
from benchmarks.measure import reason
from xcope import cli
from xcope.environment import device_name
from xcope.errors import FlagError, ToldError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """
python scripts/gpu_check.py
python scripts/gpu_check.py --only correctness
python scripts/gpu_check.py --only cope,bars --out /tmp/cope
python scripts/gpu_check.py --full
python scripts/gpu_check.py --quick
"""

PARTS = ("cope", "bars", "flex", "biases", "curve", "models", "kernels")
"""In the order in which they run; the last only if asked for, or in full."""
GROUPS = {"correctness": ("cope", "flex", "models"), "benchmark": ("bars", "biases", "curve")}
MEASURES: dict[str, Callable[[Bench], Figures]] = {
    "bars": costs.bars,
    "biases": costs.biases,
    "curve": costs.curve,
    "kernels": costs.kernels,
    "more": costs.more,
}
COMPILED_BESIDE = {"bars": "cope", "biases": "flex"}
"""What is slow to compile → the cases beside which it is compiled, if they run."""
CASES_AT_MOST = 150.0  # seconds for the cases of a part
MEMORY_OF_A_JOB = 5 * 2**30


class NotCorrectError(ToldError):
    """Some results are not what they should be; the report says which."""

    exit_code = 1


def chosen(only: Sequence[str], full: bool) -> list[str]:
    """The parts to run, in order."""
    parts = {part for name in only or GROUPS for part in GROUPS.get(name, (name,))}
    parts |= {"kernels"} if full else set()
    return [part for part in PARTS if part in parts] + ["more"] * full


def jobs_for(jobs: int | None, device: torch.device) -> int:
    """As many processes as cores and memory of the GPU allow."""
    if jobs is not None or device.type != "cuda":
        return jobs or 0
    fit = torch.cuda.get_device_properties(device).total_memory // MEMORY_OF_A_JOB
    return int(max(1, min((os.cpu_count() or 1) - 2, fit)))


class Tests:
    """A plugin of pytest: computes the cases of tests/gpu side by side, for pytest to judge.

    Args:
        record: takes what is compared.
        part: whose tests are to run.
        warm: cases that compile what is measured later.
        jobs: processes; 0: all in this one.
    """

    __name__ = "gpu_check"  # by which tests/gpu find it

    def __init__(self, record: Record, part: str, warm: Sequence[Case], jobs: int) -> None:
        self.device, self.quick = record.device.type, record.quick
        self.stopped: BaseException | None = None
        self._record, self._part, self._warm, self._jobs = record, part, warm, jobs
        self._found: dict[tuple[str, ...], list[Compared]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests of the part."""
        items[:] = [item for item in items if item.callspec.params["case"].part == self._part]

    def pytest_collection_finish(self, session: Any) -> None:
        """Compute and record all cases."""
        cases = [*self._warm, *(item.callspec.params["case"] for item in session.items)]
        self._record.say(f"{TITLES[self._part]}: {len(cases)} cases, {self._jobs or 1} at a time")
        try:
            for results in compared(self._record, cases, self._jobs):
                for one in results:
                    key = (one.case, one.backend, one.dtype)
                    self._found.setdefault(key, []).append(one)
        except OutOfTimeError as error:
            self.stopped = error
            session.items.clear()

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        """Keep Ctrl-C, which pytest would swallow; it ends by a kind of its own, too."""
        if type(excinfo.value) is KeyboardInterrupt:
            self.stopped = excinfo.value

    def results(self, case: Case) -> list[Compared]:
        """What a case compared."""
        return self._found.get((case.name, case.backend, case.dtype), [])


def compared(record: Record, cases: Sequence[Case], jobs: int) -> Iterator[list[Compared]]:
    """The results of each case, recorded."""
    for results in side_by_side(cases, jobs, CASES_AT_MOST):
        record.compare([one for one in results if one.part in GROUPS["correctness"]])
        yield results


def test(record: Record, part: str, warm: Sequence[Case], jobs: int) -> None:
    """Run the tests of a part.

    Raises:
        OutOfTimeError: the minutes are over.
        NotCorrectError: the tests could not be run.
    """
    import pytest  # noqa: PLC0415, only correctness needs it

    tests, threads = Tests(record, part, warm, jobs), torch.get_num_threads()
    options = ["-qq", "-s", "--tb=no", "-W", "ignore", "-p", "no:cacheprovider", "-o", "addopts="]
    ended = pytest.main([str(ROOT / "tests/gpu"), f"--rootdir={ROOT}", *options], [tests])
    print(flush=True)
    torch.set_num_threads(threads)  # tests take one
    if tests.stopped is not None:
        raise tests.stopped
    failed = any(one.part == part for one in record.failures)
    if ended != (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK):
        raise NotCorrectError("the tests could not be run: pytest tests/gpu says why")


def run_parts(record: Record, quick: bool, jobs: int) -> None:
    """Every part that was asked for, in order; after each, what is there is written down."""
    bench = Bench(record.device, workloads.QUICK if quick else workloads.FULL)
    warm: dict[str, list[Case]] = {}
    for part, host in COMPILED_BESIDE.items():
        if jobs and part in record.parts:
            warm[host if host in record.parts else part] = costs.slow_to_compile(part, bench)
    for part in record.parts:
        beside = warm.get(part, [])
        if part in MEASURES:
            deque(compared(record, beside, jobs), maxlen=0)
            measure(record, part, bench)
        else:
            test(record, part, beside, jobs)
        write(record)


def measure(record: Record, part: str, bench: Bench) -> None:
    """Measure a part; if it fails as a whole, say so and go on."""
    try:
        for figure in MEASURES[part](bench):
            record.measure(figure)
    except OutOfTimeError:
        raise
    except Exception as error:
        record.leave(f"{TITLES[part]}: {reason(error)}")


def typed() -> str:
    """What was typed."""
    return shlex.join(["python", *sys.argv])


@cli.command(EXAMPLES)
@click.option(
    "--only",
    type=cli.NamesType(*GROUPS, *PARTS),
    default=[],
    metavar="PART,…",
    help=f"run only these: {', '.join([*GROUPS, *PARTS])}",
)
@click.option("--out", type=cli.PATH, help="folder (default: results/gpu-<name>)")
@click.option("--full", is_flag=True, help="measure more, with no bars")
@click.option(
    "--quick",
    is_flag=True,
    help="tiny shapes, on a CPU where there is no GPU: whether it works, not what it costs",
)
@click.option(
    "--minutes",
    type=float,
    default=15,
    show_default=True,
    help="begin nothing new after these",
)
@click.option(
    "--jobs",
    type=int,
    help="processes that compare side by side (default: by cores and memory); 0: none but this",
)
def command(
    only: list[str], out: Path | None, full: bool, quick: bool, minutes: float, jobs: int | None
) -> None:
    """Check a GPU: correctness against float64, then what CoPE costs there; a report of both.

    Ends with 1 if a result is not correct, with 0 if only a bar of cost is missed.
    """
    on_cuda, parts = torch.cuda.is_available(), chosen(only, full)
    if not on_cuda and not quick:
        raise FlagError(
            "quick", "there is no CUDA device here: only --quick runs without one, on tiny shapes"
        )
    tested = set(parts) & set(GROUPS["correctness"])
    if tested and not (find_spec("pytest") and find_spec("hypothesis")):
        raise FlagError(
            "only",
            "correctness is tested by pytest, which is not installed: pip install -e '.[dev]', or "
            "give --only benchmark",
        )
    device = torch.device("cuda" if on_cuda else "cpu")
    name = folder_name(device)
    out = out or Path(f"runs/gpu-{name}-quick" if quick else f"results/gpu-{name}")
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out, typed(), device, parts, quick, minutes)
    record.say(f"{device_name(device)}; {packages()}")
    try:
        run_parts(record, quick, jobs_for(jobs, device))
    except OutOfTimeError as error:
        record.leave(str(error))
        write(record)
    finish(record)


def finish(record: Record) -> None:
    """Print how it went.

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
    sys.exit(cli.run(command))
