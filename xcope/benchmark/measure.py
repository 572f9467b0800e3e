"""Time side by side, and peak memory in processes of their own."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Work = Callable[[], object]

M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: memory from this size on goes back to the system when it is freed."""
LARGE = 2**17
"""glibc's threshold before it raises it by itself."""


def medians(works: Mapping[str, Work], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each, measured in turn: what slows the machine slows all of them."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def ratio(top: Work, bottom: Work, repeats: int) -> float:
    """How many times as long the one takes as the other."""
    times = medians({"top": top, "bottom": bottom}, repeats)
    return times["top"] / times["bottom"]


def _status(field: str) -> int:
    """A field of this process's memory status, in bytes (Linux)."""
    for entry in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if entry.startswith(field + ":"):
            return int(entry.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _measure(connection: Connection, warm: Work, work: Work, threads: int) -> None:
    torch.set_num_threads(threads)
    # else freed memory may be kept, by what was freed before, and count as used
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    warm()
    idle = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    work()
    connection.send(_status("VmHWM") - idle)


def peak_memory(warm: Work, work: Work, threads: int) -> int:
    """Bytes that ``work`` adds to a fresh process in which ``warm`` has run; both picklable.

    The process is forked from one that has imported torch and computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "numba", "xcope.cli"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, warm, work, threads))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with {process.exitcode}") from None
    finally:
        process.join()
