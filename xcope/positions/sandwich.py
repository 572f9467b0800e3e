"""Sandwich: the inner product of two sinusoidal positions as a bias; nothing is learned.

Chi, Fan, Rudnicky, Ramadge, *Dissecting Transformer Length Extrapolation via the Lens of Receptive
Field Analysis*, arXiv 2212.10356.

    s_ij ← s_ij + (1/r_h) Σ_m (cos((i − j) ω_m) − 1)
    ω_m = base^(−2m/dim), m = 0 … dim/2 − 1;  r_h = 8h/H for H heads, h = 1 … H

Σ_m cos((i − j) ω_m) is the inner product of the sinusoidal vectors of i and j, and r_h the paper's
compression ratio of a head, ALiBi's exponent. The −1 moves the biases of a head by a constant,
which the softmax does not see: so a key at distance 0 gets bias 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xcope.positions.base import FINE, Family, Geometry, IndexedScheme, Slot
from xcope.positions.distances import DistanceBias, distances, real, tabulated
from xcope.positions.registry import register


class SandwichBias(DistanceBias):
    """The bias of each query and key; no parameters.

    Args:
        heads: of the decoder.
        dim: of the sinusoidal vectors, even.
        base: of their frequencies.
    """

    ratios: Tensor

    def __init__(self, heads: int, dim: int, base: float) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self.add_constant("ratios", [8 * h / heads for h in range(1, heads + 1)])

    def curve(self, distance: Tensor) -> Tensor:
        """See `DistanceBias`."""
        delta = real(distance, like=self.ratios)
        m = torch.arange(self.dim // 2, device=distance.device, dtype=delta.dtype)
        angles = delta[..., None] * self.base ** (-2 * m / self.dim)
        return (angles.cos() - 1).sum(-1, keepdim=True) / self.ratios

    def dense(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """See `IndexBias`."""
        return tabulated(self.curve, distances(q_pos, k_pos)).movedim(-1, -3)


@register
@dataclass(frozen=True, kw_only=True)
class Sandwich(IndexedScheme):
    """``position: sandwich``.

    Args:
        dim: of the sinusoidal vectors, even; the paper's is 128. The bias grows with it.
        base: of their frequencies.
    """

    name: ClassVar[str] = "sandwich"
    title: ClassVar[str] = "Sinusoidal bias (Sandwich)"
    slot: ClassVar[Slot | None] = Slot.BIAS
    family: ClassVar[Family] = Family.FIXED
    paper: ClassVar[str] = "arXiv 2212.10356"
    formula: ClassVar[str] = "q·k + Σ_m (cos((i−j)ω_m) − 1)/r_h"
    oracle: ClassVar[str] = "formula"
    steps: ClassVar[int | None] = FINE
    authors: ClassVar[Mapping[str, Any]] = {"dim": 128, "base": 10000.0}

    dim: int = 128
    base: float = 10000.0

    def build(self, geometry: Geometry) -> SandwichBias:
        """The bias, shared among layers."""
        self.require(self.dim >= 2 and self.dim % 2 == 0, "dim", "an even number from 2 on")
        self.require(self.base > 1, "base", "it must be above 1")
        return SandwichBias(geometry.heads, self.dim, self.base)
