"""Time and memory of attention against the length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from xcope.benchmark.cope.workloads import (
    Attention,
    Scale,
    forward_backward,
    memory,
    ours,
    sdpa,
    tensors,
)
from xcope.benchmark.measure import medians


@dataclass(frozen=True)
class Point:
    """Forward and backward of one attention at one length."""

    name: str
    n: int
    seconds: float
    mebibytes: float

    def __str__(self) -> str:
        return f"n {self.n}, {self.name}: {self.seconds:.4f} s, {self.mebibytes:.1f} MiB"


def curves(upstream: Attention, scale: Scale, threads: int) -> Iterator[Point]:
    """Every contender at every length; ``upstream`` is x-transformers' CoPE attention."""
    for n in scale.lengths:
        contenders: dict[str, Attention] = {"SDPA": sdpa, "CoPE, ours": ours}
        if n <= scale.longest_upstream:
            contenders["CoPE, x-transformers"] = upstream
        given = tensors(n)
        works = {name: partial(forward_backward, f, given) for name, f in contenders.items()}
        times = medians(works, scale.repeats if n < scale.n else min(scale.slow, 3))
        del given, works
        for name, attention in contenders.items():
            yield Point(name, n, times[name], memory(attention, n, threads) / 2**20)
