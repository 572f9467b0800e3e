"""Where the time of a train step or of attention goes, by torch's profiler."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from benchmarks.measure import Bar, Breakdown, profiled
from benchmarks.small.costs import Pair

BEGINNINGS = {
    "xcope::cope_backward": "CoPE backward",
    "GeneratedBackwardFor_xcope_cope": "CoPE backward",
    "xcope::cope": "CoPE forward",
    "xcope::biased": "other attention of ours",
    "GeneratedBackwardFor_xcope_biased": "other attention of ours",
    "aten::_scaled_dot_product": "SDPA",
    "aten::scaled_dot_product": "SDPA",
    "xcope::turn_pairs": "rotations",
    "xcope::to_polar": "rotations",
    "GeneratedBackwardFor_xcope_t": "rotations",
    "aten::mm": "products",
    "aten::addmm": "products",
    "aten::bmm": "products",
    "aten::native_layer_norm": "layer norms",
    "Optimizer.step": "optimizer",
}
"""How the name of an event begins → the part that it and all in it belong to."""
PARTS = (*dict.fromkeys(BEGINNINGS.values()), "rest")


def part_of(name: str, around: str) -> str:
    """The part that an event belongs to; ``around`` is the part of the event that it is in."""
    if around != PARTS[-1]:
        return around
    found = (part for beginning, part in BEGINNINGS.items() if name.startswith(beginning))
    return next(found, around)


def breakdowns(pairs: Iterable[Pair], bars: Iterable[Bar], most: int) -> list[Breakdown]:
    """Profile both sides of bars that are missed, of so many at most."""
    missed = {bar.name for bar in bars if not bar.met}
    works = (
        (pair.name, what, work)
        for pair in islice((pair for pair in pairs if pair.name in missed), most)
        for what, work in zip((pair.top, pair.bottom), pair.make(), strict=True)
    )
    return profiled(works, PARTS, part_of)
