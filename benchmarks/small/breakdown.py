"""Where the time of a train step or of attention goes, by torch's profiler."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from benchmarks.measure import Bar, Breakdown, profiled
from benchmarks.small.costs import Pair

OPERATORS = {
    "xcope::cope": "rest of CoPE",
    "GeneratedBackwardFor_xcope_cope": "rest of CoPE",
    "xcope::biased": "index biases",
    "GeneratedBackwardFor_xcope_biased": "index biases",
    "aten::_scaled_dot_product": "SDPA",
    "aten::scaled_dot_product": "SDPA",
    "Optimizer.step": "optimizer",
}
"""How the name of an event begins → the part that it and all in it belong to."""
OPERATIONS = {
    "aten::mm": "products",
    "aten::addmm": "products",
    "aten::bmm": "products",
    "aten::baddbmm": "products",
    "aten::native_layer_norm": "layer norms",
}
"""The same of single operations."""
PARTS = (
    *("CoPE's products", "rest of CoPE", "index biases", "SDPA"),
    *("products", "layer norms", "optimizer", "rest"),
)


def part_of(name: str, around: str) -> str:
    """The part that an event belongs to; ``around`` is the part of the event that it is in."""
    if around == PARTS[-1]:
        for begin, part in (OPERATORS | OPERATIONS).items():
            if name.startswith(begin):
                return part
    if around == "rest of CoPE" and OPERATIONS.get(name.rstrip("_")) == "products":
        return "CoPE's products"
    return around


def breakdowns(pairs: Iterable[Pair], bars: Iterable[Bar], most: int) -> list[Breakdown]:
    """Profile both sides of bars that are missed, of so many at most."""
    missed = {bar.name for bar in bars if not bar.met}
    works = (
        (pair.name, what, work)
        for pair in islice((pair for pair in pairs if pair.name in missed), most)
        for what, work in zip((pair.top, pair.bottom), pair.make(), strict=True)
    )
    return profiled(works, PARTS, part_of)
