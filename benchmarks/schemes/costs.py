"""What each scheme costs over plain attention, and the bars that it must keep to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.measure import ratio
from benchmarks.schemes.naive import NAIVE, works
from benchmarks.schemes.workloads import DIM_HEAD, HEADS, Layer, Plain, Scale, memory, rivals

TIME_LIMITS = {
    "rotary": 1.15,
    "xpos": 1.15,
    "contextual_rotary": 1.15,
    "alibi": 1.2,
    "t5": 1.5,
    "sandwich": 1.5,
    "kerple": 2.0,
    "fire": 3.0,
    "dynamic": 3.0,
    "relative": 1.3,
    "decay": 2.0,
    "stick_breaking": 2.0,
    "path": 3.0,
    "wall": 3.0,
    "window": 0.4,
    "sink": 1.3,
    "length_scale": 1.3,
}
"""Scheme → limit of its time over plain attention's; others have none."""

MEMORY_LIMIT = 1.5
"""Limit of a scheme's peak of memory over plain attention's."""

MEMORY_LIMITS = {"path": 2.0, "wall": 2.0}
"""Of schemes for which tokens have as much as a further key."""


@dataclass(frozen=True)
class Cost:
    """What a scheme costs.

    Args:
        scheme: its name.
        time: of a forward and backward, over plain attention's.
        memory: the peak of these, over plain attention's.
        upstream: x-transformers' model over ours, if it has the scheme.
        upstream_how: how x-transformers computes its attention; empty if it has no such scheme.
        naive: a naive version's attention over ours, where x-transformers has none.
        naive_how: what that holds, and at how many tokens it was measured.
    """

    scheme: str
    time: float
    memory: float
    upstream: float | None = None
    upstream_how: str = ""
    naive: float | None = None
    naive_how: str = ""

    @property
    def time_limit(self) -> float | None:
        """The limit of ``time``, if it has one."""
        return TIME_LIMITS.get(self.scheme)

    @property
    def memory_limit(self) -> float:
        """The limit of ``memory``."""
        return MEMORY_LIMITS.get(self.scheme, MEMORY_LIMIT)

    @property
    def missed(self) -> list[str]:
        """Which bars are not met: ``time``, ``memory``."""
        bars = {"time": (self.time, self.time_limit), "memory": (self.memory, self.memory_limit)}
        return [bar for bar, (found, limit) in bars.items() if limit and found > limit]

    @property
    def verdict(self) -> str:
        """``met``, or which bars are not."""
        return f"NOT MET: {', '.join(self.missed)}" if self.missed else "met"

    def __str__(self) -> str:
        limit = f"≤ {self.time_limit:g}" if self.time_limit else ""
        theirs = f"{self.naive_how} {self.naive:.2f}" if self.naive else ""
        if self.upstream:
            theirs = f"x-transformers {self.upstream:.2f} ({self.upstream_how})"
        return (
            f"{self.scheme:16} time {self.time:5.2f} {limit:6}  memory {self.memory:5.2f} "
            f"≤ {self.memory_limit:g}  {self.verdict:8}  {theirs}"
        ).rstrip()


def costs(names: Iterable[str], scale: Scale, threads: int) -> Iterator[Cost]:
    """What each of these schemes costs, as it is measured."""
    plain_bytes = memory(None, scale.n, threads)
    for name in names:
        time = ratio(Layer(name, scale.n), Plain(scale.n), scale.repeats)
        peak = memory(name, scale.n, threads) / plain_bytes
        yield Cost(name, time, peak, *_upstream(name, scale), *_naively(name, scale))


def _naively(name: str, scale: Scale) -> tuple[float | None, str]:
    """A naive version's time over ours, what it holds and at how many tokens."""
    if name not in NAIVE:
        return None, ""
    n = min(scale.n, NAIVE[name].most)
    theirs, ours = works(name, n, HEADS, DIM_HEAD)
    return ratio(theirs, ours, scale.slow), f"{NAIVE[name].how}, n={n}"


def _upstream(name: str, scale: Scale) -> tuple[float | None, str]:
    """x-transformers' time over ours, and how it computes attention."""
    pair = rivals(name, scale.n)
    if pair is None:
        return None, ""
    theirs, ours = pair.works(scale.n)
    return ratio(theirs, ours, scale.repeats if pair.flash else scale.slow), pair.how
