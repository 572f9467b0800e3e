"""Where the time and the memory of CoPE attention go, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks.cope.costs import memory_name, train_name
from benchmarks.cope.workloads import (
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
from xcope.ops.cope.cpu import walk
from xcope.ops.cope.cpu.tiles import BackwardRows, Body, ForwardRows

PARTS = ("products", "elementwise", "rest of CoPE", "SDPA", "outside attention")
PRODUCTS = ("aten::bmm", "aten::baddbmm_", "aten::mm", "aten::addmm_")
OPERATOR, FLASH = "xcope::cope", "aten::_scaled_dot_product_"
ELEMENTWISE = "elementwise work of a tile"


class Watched:
    """A body of CoPE's tiles whose work the profiler sees, and that keeps the size of its tensors.

    Args:
        body: does the elementwise work of a tile.

    Attributes:
        nbytes: by the names of `xcope.ops.cope.cpu.tiles`, the most that there were.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self.nbytes: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def forward(self, s: Tensor, a: Tensor, rows: ForwardRows, *rest: Any) -> None:
        """As the body's."""
        self._saw(s=s, L=rows.L)
        with record_function(ELEMENTWISE):
            self._body.forward(s, a, rows, *rest)

    def backward(self, s: Tensor, dp: Tensor, a: Tensor, rows: BackwardRows, *rest: Any) -> None:
        """As the body's."""
        self._saw(s=s, dp=dp, L=rows.L, dL=rows.dL)
        with record_function(ELEMENTWISE):
            self._body.backward(s, dp, a, rows, *rest)

    def _saw(self, **tensors: Tensor) -> None:
        for name, t in tensors.items():
            self.nbytes[name] = max(self.nbytes.get(name, 0), t.numel() * t.element_size())


Runner = Callable[[Attention, list[Tensor]], None]


def breakdowns(scale: Scale) -> list[Breakdown]:
    """Profile what the bars of time measure, and what they measure it over."""
    with watched():
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


@contextmanager
def watched() -> Iterator[Watched]:
    """Let the profiler see the elementwise work of a tile."""
    body = Watched(walk.body_for(torch.float32, torch.device("cpu")))
    with mock.patch.object(walk, "body_for", return_value=body):
        yield body


def _part(name: str, around: str) -> str:
    """The part that an event belongs to; ``around`` is the part of the event that it is in."""
    if name.startswith(FLASH):
        return "SDPA"
    if name.startswith(OPERATOR):
        return "rest of CoPE"
    if around == "rest of CoPE" and name == ELEMENTWISE:
        return "elementwise"
    if around == "rest of CoPE" and name in PRODUCTS:
        return "products"
    return around


def buffers(scale: Scale) -> dict[str, dict[str, int]]:
    """Bar of memory → bytes of the buffers that all tiles share: L, dL, s, dp."""
    found = {}
    for max_pos in (MAX_POS, scale.n):
        with watched() as body:
            forward_backward(ours, tensors(scale.n, max_pos))
        found[memory_name(max_pos)] = body.nbytes
    return found
