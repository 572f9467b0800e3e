"""KERPLE: kernelized relative positions, whose bias falls with a learned logarithm or power.

Chi, Fan, Ramadge, Rudnicky, *KERPLE: Kernelized Relative Positional Embedding for Length
Extrapolation*, arXiv 2205.09921.

    s_ij ← s_ij − r1_h log(1 + r2_h |i − j|)       kind "log"
    s_ij ← s_ij − r1_h |i − j|^r2_h                kind "power", r2 at most 2

Every head learns r1 and r2, both above 0. The paper's code sets values below 0.01 to 0.01 before
each use; here r1 = softplus(raw_r1), and r2 likewise or, for powers, r2 = 2 sigmoid(raw_r2), so
that they stay within their bounds and always have a gradient. They begin where those of the
paper's code do: uniformly between 0 and 1, and between 0 and 2 for r1 of "log" and r2 of "power".

Here each layer has two numbers per head of its own; the paper's code has two per head for all
layers, ``shared``, which is what ``start: authors`` takes: for 12 layers of 12 heads 24 numbers
instead of 288.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.positions.base import FINE, Geometry, IndexedScheme, Slot
from xcope.positions.distances import DistanceBias, real
from xcope.positions.registry import register

KINDS = ("log", "power")
LEAST = 0.01
"""No parameter begins nearer than this to a bound."""


class KerpleBias(DistanceBias):
    """The bias of each query and key.

    Args:
        heads: of the decoder.
        kind: ``log`` or ``power``.
    """

    def __init__(self, heads: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        r1 = torch.rand(heads) * (2 if kind == "log" else 1)
        r2 = torch.rand(heads) * (1 if kind == "log" else 2)
        self.raw_r1 = nn.Parameter(_inverse_softplus(r1.clamp(min=LEAST)))
        raw_r2 = (
            _inverse_softplus(r2.clamp(min=LEAST))
            if kind == "log"
            else torch.logit(r2.clamp(LEAST, 2 - LEAST) / 2)
        )
        self.raw_r2 = nn.Parameter(raw_r2)

    @property
    def r1(self) -> Tensor:
        """(h), above 0."""
        return F.softplus(real(self.raw_r1, like=self.raw_r1))

    @property
    def r2(self) -> Tensor:
        """(h), above 0; for powers below 2."""
        raw = real(self.raw_r2, like=self.raw_r2)
        return F.softplus(raw) if self.kind == "log" else 2 * raw.sigmoid()

    def curve(self, distance: Tensor) -> Tensor:
        """See `DistanceBias`."""
        delta = real(distance.abs(), like=self.raw_r1)[..., None]
        if self.kind == "log":
            return -self.r1 * torch.log1p(self.r2 * delta)
        return -self.r1 * delta**self.r2


def _inverse_softplus(r: Tensor) -> Tensor:
    return r + torch.log(-torch.expm1(-r))


@register
@dataclass(frozen=True, kw_only=True)
class Kerple(IndexedScheme):
    """``position: kerple``.

    Args:
        kind: ``log``, which extrapolates best in the paper, or ``power``.
        shared: all layers have the same two numbers per head, as in the paper's code; if not, each
            layer has its own.
    """

    name: ClassVar[str] = "kerple"
    title: ClassVar[str] = "Kernelized bias (KERPLE)"
    slot: ClassVar[Slot | None] = Slot.BIAS
    paper: ClassVar[str] = "arXiv 2205.09921"
    formula: ClassVar[str] = "q·k − r1_h log(1 + r2_h|i−j|)"
    oracle: ClassVar[str] = "formula"
    steps: ClassVar[int | None] = FINE
    authors: ClassVar[Mapping[str, Any]] = {"shared": True}

    kind: str = "log"
    shared: bool = False

    def build(self, geometry: Geometry) -> KerpleBias:
        """The bias of one layer, or of all."""
        self.require_among("kind", KINDS)
        return KerpleBias(geometry.heads, self.kind)
