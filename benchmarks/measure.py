"""Time side by side and memory at its peak, on a CPU and on a GPU.

What is compared runs in turn, so that what slows the machine slows all of it; a figure is a median.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

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


def medians(
    works: Mapping[str, Work],
    repeats: int = 5,
    device: torch.device = CPU,
    errors: dict[str, Exception] | None = None,
) -> dict[str, float]:
    """Median seconds of each, run in turn; the first run of each does not count.

    Args:
        errors: takes the errors of those that fail, which get no median; None: an error is raised.
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
    return {name: statistics.median(t[1:]) for name, t in taken.items() if name not in failed}


def ratio(top: Work, bottom: Work, repeats: int) -> float:
    """How many times as long the one takes as the other."""
    times = medians({"top": top, "bottom": bottom}, repeats)
    return times["top"] / times["bottom"]


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

    The process is forked from one that has imported torch and computed nothing.

    Raises:
        OSError: the system does not tell how much memory a process has; Linux does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "numba", "matplotlib.figure", "xcope.training"])
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
