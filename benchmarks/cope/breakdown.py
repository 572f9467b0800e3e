"""Where the time and the memory of CoPE attention go, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from benchmarks.cope.costs import memory_name, train_name
from benchmarks.cope.workloads import (
    DIM,
    MAX_POS,
    Attention,
    Scale,
    forward,
    forward_backward,
    ours,
    sdpa,
    tensors,
    train_step,
)
from benchmarks.measure import Breakdown, Work, profiled
from xcope.ops.compiled.frames import VECTORS, size_of_frame

PARTS = ("CoPE forward", "CoPE backward", "other attention", "outside attention")
OPERATORS = {"xcope::cope": PARTS[0], "xcope::cope_backward": PARTS[1]}
OTHERS = ("aten::_scaled_dot_product_", "xcope::biased_tiled")


Runner = Callable[[Attention, list[Tensor]], None]


def breakdowns(scale: Scale) -> list[Breakdown]:
    """Profile what the bars of time measure, and what they measure it over."""
    return profiled(_cases(scale), PARTS, _part)


def _cases(scale: Scale) -> Iterator[tuple[str, str, Work]]:
    """Name of a bar, what runs (CoPE or what it is measured over), and the work."""
    usual, n = tensors(scale.n), scale.n
    cases: list[tuple[str, Runner, list[Tensor]]] = [
        ("fwd+bwd, max_pos 64", forward_backward, usual),
        ("fwd+bwd, max_pos 64, gates near 0", forward_backward, tensors(n, few_gates=True)),
        (f"fwd+bwd, max_pos {n}", forward_backward, tensors(n, max_pos=n)),
        ("fwd, max_pos 64", forward, usual),
    ]
    for case, run, given in cases:
        yield case, "CoPE", partial(run, ours, given)
        yield case, "SDPA", partial(run, sdpa, given)
    for model in (scale.large, scale.small):
        yield train_name(model), "CoPE", train_step(model, "cope")
        yield train_name(model), "rotary", train_step(model, "rotary")


def _part(name: str, around: str) -> str:
    """The part that an event belongs to; ``around`` is the part of the event that it is in."""
    if around != PARTS[-1]:
        return around
    if name.startswith(OTHERS):
        return PARTS[2]
    return OPERATORS.get(name, around)


def scratch(scale: Scale) -> dict[str, int]:
    """Bar of memory → bytes of a thread's memory, beside the inputs, out and the gradients."""
    return {
        memory_name(max_pos): VECTORS * size_of_frame(DIM, DIM, 0, max_pos)
        for max_pos in (MAX_POS, scale.n)
    }
