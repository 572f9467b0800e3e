"""Times in turn, and peak memory in a process of its own."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from benchmarks.measure import medians, paired, peak_memory, ratio

MIB = 2**20


def test_medians_alternate():
    calls: list[str] = []
    works = {name: partial(calls.append, name) for name in "ab"}
    medians(works, repeats=3)
    assert calls == ["a", "b"] * 4  # once before the clock runs


def test_medians_and_their_ratio(monkeypatch):
    """By a clock that the works themselves move on; the first run is not counted."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work(costs: Iterator[float]) -> None:
        now[0] += next(costs)

    def works() -> list[Callable[[], None]]:
        costs = ([99.0, 3.0, 50.0, 1.0], [99.0, 2.0, 2.0, 70.0])
        return [partial(work, iter(each)) for each in costs]

    assert medians(dict(zip("ab", works(), strict=True)), repeats=3) == {"a": 3.0, "b": 2.0}
    assert ratio(*works(), repeats=3) == 1.5


def test_a_ratio_is_of_runs_in_the_same_round():
    """What slows a round slows both; the ratio of the medians would be 1.9."""
    assert paired([2.0, 20.0, 3.8], [1.0, 10.0, 2.0]) == 2.0


def test_peak_memory_sees_what_is_allocated_and_freed_again():
    allocate = partial(torch.ones, 64 * MIB // 4)
    idle = partial(torch.ones, 1)
    assert peak_memory(idle, allocate, 1) == pytest.approx(64 * MIB, rel=0.05)
    assert peak_memory(idle, idle, 1) < 4 * MIB


def _leave_a_hole() -> None:
    def mebibytes(size: int) -> torch.Tensor:
        return torch.ones(size * MIB // 4)

    mebibytes(16)  # freed: glibc would now keep such memory
    below, above = mebibytes(16), mebibytes(16)
    del below
    mebibytes(24)
    del above


def test_peak_memory_is_what_is_held_not_what_the_allocator_keeps():
    assert peak_memory(partial(torch.ones, 1), _leave_a_hole, 1) == pytest.approx(
        40 * MIB, rel=0.05
    )


def test_a_process_that_ends_early_is_told():
    with pytest.raises(RuntimeError, match="ended with 3"):
        peak_memory(partial(torch.ones, 1), partial(os._exit, 3), 1)
