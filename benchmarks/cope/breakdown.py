"""Where the time and the memory of CoPE attention go, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile, record_function

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
from benchmarks.measure import Work
from xcope.ops.compiled.frames import VECTORS, size_of_frame

PARTS = ("CoPE forward", "CoPE backward", "other attention", "outside attention")
OPERATORS = {"xcope::cope": PARTS[0], "xcope::cope_backward": PARTS[1]}
OTHERS = ("aten::_scaled_dot_product_", "xcope::biased_tiled")
BESIDE = " | "  # in the name of a profiled run, between its case and what is run
PROFILES = 3


@dataclass(frozen=True)
class Breakdown:
    """Seconds of one call, whole and by `PARTS`."""

    case: str
    what: str
    whole: float
    parts: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in self.parts.items())
        return f"{self.case}, {self.what}: {1000 * self.whole:.1f} ms: {parts}"


Runner = Callable[[Attention, list[Tensor]], None]


def breakdowns(scale: Scale) -> list[Breakdown]:
    """Profile what the bars of time measure, and what they measure it over."""
    with profile() as profiled:
        for case, what, work in _cases(scale):
            work()
            for _ in range(PROFILES):
                with record_function(case + BESIDE + what):
                    work()
    runs: dict[str, list[Breakdown]] = {}
    for event in profiled.events() or ():
        if BESIDE in event.name:
            runs.setdefault(event.name, []).append(_breakdown(event))
    return [sorted(found, key=lambda b: b.whole)[len(found) // 2] for found in runs.values()]


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


def _breakdown(event: FunctionEvent) -> Breakdown:
    parts = dict.fromkeys(PARTS, 0.0)
    _share_out(event, PARTS[-1], parts)
    case, what = event.name.split(BESIDE)
    return Breakdown(case, what, event.cpu_time_total / 1e6, parts)


def _share_out(event: FunctionEvent, around: str, parts: dict[str, float]) -> None:
    """Add an event's own time, and that of the events in it, to the parts they belong to."""
    part = _part(event.name, around)
    parts[part] += event.self_cpu_time_total / 1e6
    for inner in event.cpu_children:
        _share_out(inner, part, parts)


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
        memory_name(max_pos): VECTORS * size_of_frame(DIM, DIM, max_pos)
        for max_pos in (MAX_POS, scale.n)
    }
