"""What the variants of CoPE cost over the plain one, and what doing without numba costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from xcope.benchmark.cope.workloads import (
    DIM,
    HEADS,
    MAX_POS,
    Attention,
    Scale,
    forward_backward,
    forward_backward_in_torch,
    ours,
    sdpa,
    tensors,
)
from xcope.benchmark.measure import ratio
from xcope.ops.cope import cope_attention


@dataclass(frozen=True)
class Variant:
    """Forward and backward of a variant over those of what it is compared with."""

    name: str
    over: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.name}: {self.ratio:.2f} × {self.over}"


def variants(scale: Scale) -> Iterator[Variant]:
    """One after the other, max_pos 64 unless said otherwise."""
    usual = tensors(scale.n)
    plain = partial(forward_backward, ours, usual)
    for name, attention, given in _variants(usual):
        cost = ratio(partial(forward_backward, attention, given), plain, scale.slow)
        yield Variant(name, "plain CoPE", cost)
    cases = {
        "max_pos 64": usual,
        "gates near 0": tensors(scale.n, few_gates=True),
        f"max_pos {scale.n}": tensors(scale.n, max_pos=scale.n),
    }
    for case, given in cases.items():
        in_torch = partial(forward_backward_in_torch, ours, given)
        cost = ratio(in_torch, partial(forward_backward, sdpa, given), scale.slow)
        yield Variant(f"without numba, {case}", "SDPA", cost)


def _variants(usual: list[Tensor]) -> Iterator[tuple[str, Attention, list[Tensor]]]:
    q, k, v, _ = usual
    gate_k = torch.randn_like(k).requires_grad_()
    mix = (torch.eye(HEADS) + 0.1 * torch.randn(HEADS, HEADS)).requires_grad_()
    tables = (0.1 * torch.randn(HEADS, MAX_POS, DIM)).requires_grad_()
    yield "gates from their own keys (cope_sep_keys)", _sep_keys, [*usual, gate_k]
    yield "gates from values (cope_val_gates)", _val_gates, usual
    yield "gates mixed across heads (cope_talking_heads)", _talking_heads, [*usual, mix]
    yield "a table for each head (cope_per_head)", ours, [q, k, v, tables]


def _sep_keys(q: Tensor, k: Tensor, v: Tensor, table: Tensor, gate_k: Tensor) -> Tensor:
    return cope_attention(q, k, v, table, gate_k=gate_k)


def _val_gates(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return cope_attention(q, k, v, table, gate_k=v)


def _talking_heads(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mix: Tensor) -> Tensor:
    return cope_attention(q, k, v, table, head_mix=mix)
