"""Time side by side, where it goes, and memory at its peak; bars that a figure must keep to.

What is compared runs in turn, so that what slows the machine slows all of it; a figure is a median.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile, record_function

from xcope.training.device import PeakMemory

Work = Callable[[], object]

CPU = torch.device("cpu")
MEBIBYTE = 2**20
WARM = 1
"""Runs before the peak of memory is taken: the first compiles and tunes."""

M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: memory from this size on goes back to the system when it is freed."""
LARGE = 2**17
"""glibc's threshold before it raises it by itself."""


# -- time ----------------------------------------------------------------------------------------


def seconds(device: torch.device, work: Work) -> float:
    """Time one run, by CUDA's events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    # as typed in some versions of torch, untyped in others
    make: Any = torch.cuda.Event
    begin, end = (make(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def rounds(
    works: Mapping[str, Work],
    repeats: int = 5,
    device: torch.device = CPU,
    errors: dict[str, Exception] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every run of each, run in turn; the first run of each does not count.

    Args:
        errors: takes the errors of those that fail, which get no times; None: an error is raised.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    failed = {} if errors is None else errors
    for name, work in list(works.items()) * (repeats + 1):
        if name in failed:
            continue
        try:
            taken[name].append(seconds(device, work))
        except Exception as error:
            if errors is None:
                raise
            failed[name] = error
    return {name: t[1:] for name, t in taken.items() if name not in failed}


def medians(
    works: Mapping[str, Work],
    repeats: int = 5,
    device: torch.device = CPU,
    errors: dict[str, Exception] | None = None,
) -> dict[str, float]:
    """Median seconds of each; arguments as of `rounds`."""
    taken = rounds(works, repeats, device, errors)
    return {name: statistics.median(t) for name, t in taken.items()}


def paired(top: Sequence[float], bottom: Sequence[float]) -> float:
    """The median of a run's time over that of the other's in the same round."""
    return statistics.median(t / b for t, b in zip(top, bottom, strict=True))


def ratio(top: Work, bottom: Work, repeats: int) -> float:
    """How many times as long the one takes as the other."""
    times = rounds({"top": top, "bottom": bottom}, repeats)
    return paired(times["top"], times["bottom"])


@dataclass(frozen=True)
class Timing:
    """What a contender takes.

    Args:
        seconds: the median.
        mebibytes: allocated at the peak beyond what was allocated before, so without inputs; None
            on a CPU.
        error: why there are none.
    """

    seconds: float | None = None
    mebibytes: float | None = None
    error: str = ""


def timings(
    device: torch.device, makers: Mapping[str, Callable[[], Work]], repeats: int
) -> dict[str, Timing]:
    """Time and memory of each contender; one that fails, out of memory say, stops no other.

    Args:
        device: where they run.
        makers: name → what makes the work.
        repeats: of the measurement.
    """
    works: dict[str, Work] = {}
    peaks: dict[str, float | None] = {}
    errors: dict[str, Exception] = {}
    for name, make in makers.items():
        try:
            work = make()
            for _ in range(WARM):
                work()
            peaks[name], works[name] = allocated(device, work), work
        except Exception as error:
            errors[name] = error
        if device.type == "cuda":
            torch.cuda.empty_cache()
    times = medians(works, repeats, device, errors)
    return {
        name: Timing(error=reason(errors[name]))
        if name in errors
        else Timing(times[name], peaks[name])
        for name in makers
    }


def reason(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


# -- where time goes -----------------------------------------------------------------------------

BESIDE = " | "  # in the name of a profiled run, between its case and what is run
PROFILES = 3


@dataclass(frozen=True)
class Breakdown:
    """Seconds of one run, whole and by parts.

    Args:
        case: what is measured.
        what: that runs, one of the contenders.
    """

    case: str
    what: str
    whole: float
    parts: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in self.parts.items())
        return f"{self.case}, {self.what}: {1000 * self.whole:.1f} ms: {parts}"


PartOf = Callable[[str, str], str]
"""The name of a profiler's event, and the part of the event that it lies in → its part."""


def profiled(
    works: Iterable[tuple[str, str, Work]], parts: Sequence[str], part_of: PartOf
) -> list[Breakdown]:
    """Profile each of some works on a CPU; of a few runs the one of median length.

    Args:
        works: case, what runs, and the work.
        parts: all there are; the last is of what lies in no other.
        part_of: says which an event belongs to.
    """
    with profile() as profiler:
        for case, what, work in works:
            work()
            for _ in range(PROFILES):
                with record_function(case + BESIDE + what):
                    work()
    runs: dict[str, list[Breakdown]] = {}
    for event in profiler.events() or ():
        if BESIDE in event.name:
            shares = dict.fromkeys(parts, 0.0)
            _share_out(event, parts[-1], shares, part_of)
            case, what = event.name.split(BESIDE)
            found = Breakdown(case, what, event.cpu_time_total / 1e6, shares)
            runs.setdefault(event.name, []).append(found)
    return [sorted(found, key=lambda b: b.whole)[len(found) // 2] for found in runs.values()]


def _share_out(
    event: FunctionEvent, around: str, shares: dict[str, float], part_of: PartOf
) -> None:
    """Add an event's own time, and that of the events in it, to the parts they belong to."""
    part = part_of(event.name, around)
    shares[part] += event.self_cpu_time_total / 1e6
    for inner in event.cpu_children:
        _share_out(inner, part, shares, part_of)


# -- memory --------------------------------------------------------------------------------------


def allocated(device: torch.device, work: Work) -> float | None:
    """MiB that a run allocates at its peak on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    peak = PeakMemory(device)
    work()
    torch.cuda.synchronize()
    found = peak.bytes()
    return None if found is None else found / MEBIBYTE


def peak_memory(warm: Work, work: Work, threads: int) -> int:
    """Bytes that ``work`` adds to a fresh process in which ``warm`` has run; both picklable.

    The process is forked from one that has imported all that is slow to import, and computed
    nothing.

    Raises:
        OSError: the system does not tell how much memory a process has; Linux does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "xcope.compare.run.preloaded"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(theirs, warm, work, threads))
    process.start()
    theirs.close()
    try:
        peak: int | None = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with {process.exitcode}") from None
    finally:
        process.join()
    if peak is None:
        raise OSError("this system does not tell how much memory a process has")
    return peak


def _send_peak(connection: Connection, warm: Work, work: Work, threads: int) -> None:
    torch.set_num_threads(threads)
    # else freed memory may be kept, by what was freed before, and count as used
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    warm()
    peak = PeakMemory(CPU)
    work()
    connection.send(peak.bytes())


# -- bars ----------------------------------------------------------------------------------------

LINEAR = 0.1  # growth by the factor of the lengths, give or take


@dataclass(frozen=True)
class Bar:
    """A measured ratio, or seconds, and what it must keep to.

    Args:
        limit: what it must not exceed; with ``at_least``, not fall below; None: it is only told.
        goal: a better limit that is aimed at, if there is one.
        at_least: more is better.
        parts: the case of a `Breakdown` that says where its time or memory goes.
        growth: the ratio of the lengths, where the ratio is one of growth.
    """

    name: str
    ratio: float
    limit: float | None
    goal: float | None = None
    at_least: bool = False
    parts: str | None = None
    growth: int | None = None

    def keeps_to(self, bound: float | None) -> bool:
        """Whether a limit or goal, if there is one, is met."""
        if bound is None:
            return True
        return self.ratio >= bound if self.at_least else self.ratio <= bound

    @property
    def met(self) -> bool:
        return self.keeps_to(self.limit)

    @property
    def goal_met(self) -> bool:
        return self.keeps_to(self.goal)

    def text(self, bound: float | None) -> str:
        """A limit or goal in words."""
        if bound is None:
            return "–"
        return f"{'≥' if self.at_least else '≤'} {bound:g}"

    @property
    def verdict(self) -> str:
        if not self.met:
            return "NOT MET"
        if self.growth:
            linear = self.ratio >= (1 - LINEAR) * self.growth
            return "met: linear" if linear else "met: sublinear"
        if self.limit is None:
            return "" if self.goal_met else "goal missed"
        return "met" if self.goal_met else "met, goal missed"

    def __str__(self) -> str:
        bounds = f"{self.text(self.limit):7} goal {self.text(self.goal):7}"
        return f"{self.name:66} {self.ratio:7.3f}  {bounds} {self.verdict}".rstrip()
