"""Time and memory on a GPU, of contenders in turn, and what machine it was."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from xcope import environment
from xcope.benchmark.gpu.compare import reason
from xcope.benchmark.measure import Work

WARM = 2
"""Runs before the first measured one: the first compiles and tunes."""


@dataclass(frozen=True)
class Timing:
    """What a contender takes.

    Args:
        seconds: the median.
        mebibytes: allocated at the peak beyond what was allocated before, so without inputs; None
            where that is not known.
        error: why there are none.
    """

    seconds: float | None = None
    mebibytes: float | None = None
    error: str = ""


def timings(
    device: torch.device, makers: Mapping[str, Callable[[], Work]], repeats: int
) -> dict[str, Timing]:
    """Of each contender, measured in turn: what slows the machine slows all of them.

    Args:
        device: where they run.
        makers: name → what makes the work; who fails, out of memory say, is left out.
        repeats: of the measurement.
    """
    works: dict[str, Work] = {}
    found: dict[str, Timing] = {}
    for name, make in makers.items():
        try:
            work = make()
            for _ in range(WARM):
                work()
            found[name] = Timing(mebibytes=peak_memory(device, work))
            works[name] = work
        except Exception as error:
            found[name] = Timing(error=reason(error))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in works}
    for name, work in list(works.items()) * repeats:
        try:
            times[name].append(seconds(device, work))
        except Exception as error:
            found[name] = Timing(error=reason(error))
    for name, taken in times.items():
        if not found[name].error:
            found[name] = Timing(statistics.median(taken), found[name].mebibytes)
    return found


def seconds(device: torch.device, work: Work) -> float:
    """Of one run, by CUDA's events where there are any."""
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


def peak_memory(device: torch.device, work: Work) -> float | None:
    """MiB that ``work`` allocates at its peak; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def folder_name(device: torch.device) -> str:
    """For a folder: ``h100-80gb-hbm3``, or ``cpu``."""
    if device.type != "cuda":
        return device.type
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce"))


def versions() -> str:
    """Of what the figures depend on."""
    found = environment.versions((*environment.TIMED, "triton"))
    return found if torch.version.cuda is None else f"{found}, CUDA {torch.version.cuda}"
