"""FIRE: functional interpolation, a small network of the distance relative to the query's place.

Li et al., *Functional Interpolation for Relative Positions Improves Long Context Transformers*,
arXiv 2310.04418.

    s_ij ← s_ij + f(ψ(i − j) / ψ(max(i, L)))_h,  ψ(x) = log(1 + |c x|)
    f(t) = W2 relu(w1 t + b1) + b2

Learned are c, the threshold L = |L_multiplier · init_l|, and f. Places count from 0; i of a query
beyond L divides its distances, so that t stays within 0 … 1 at any length. As in the paper's
code 1e-6 is added to the divisor.

A network with one hidden ReLU layer is piecewise linear in its one input. So tiled attention gets
the corners of f, and slope and offset between them, instead of a network for every query and key.

L begins at 512 as in the paper's code; its copy in the code of DAPE (arXiv 2405.14722) begins at
256, ``init_l: 256``. Each layer has a network of its own, as in the paper; the paper's FIRE-S has
one for all, ``shared``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.ops.terms import Piecewise
from xcope.positions.base import FINE, Geometry, IndexBias, IndexedScheme, Slot
from xcope.positions.distances import distances, in_table, real
from xcope.positions.registry import register

EPS = 1e-6


class FireBias(IndexBias):
    """The bias of each query and key; the parameter names of the paper's code.

    Args:
        heads: of the decoder.
        mlp_width: hidden units of f.
        init_c: where c begins.
        init_l: L, while its multiplier is 1 as in the beginning.
    """

    def __init__(self, heads: int, mlp_width: int, init_c: float, init_l: float) -> None:
        super().__init__()
        self.init_l = init_l
        self.c = nn.Parameter(torch.full((1,), float(init_c)))
        self.L_multiplier = nn.Parameter(torch.ones(1))
        self.mlp = nn.Sequential(nn.Linear(1, mlp_width), nn.ReLU(), nn.Linear(mlp_width, heads))

    def psi(self, x: Tensor) -> Tensor:
        """ψ of the formula."""
        return torch.log1p((real(self.c, like=self.c) * x).abs())

    def shrink(self, q_pos: Tensor) -> Tensor:
        """What multiplies ψ(i − j), for queries at these places; (i) or (b i)."""
        i = real(q_pos, like=self.c)
        threshold = (real(self.L_multiplier, like=self.c) * self.init_l).abs()
        return 1 / (self.psi(torch.maximum(i, threshold)) + EPS)

    def layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w1 (width), b1 (width), W2 (h width), b2 (h); at least float32."""
        # by name: a parametrised layer has other parameters
        linears: list[Any] = [self.mlp[0], self.mlp[2]]
        w1, b1, w2, b2 = (real(p, like=p) for one in linears for p in (one.weight, one.bias))
        return w1[:, 0], b1, w2, b2

    def dense(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """See `IndexBias`."""
        distance = real(distances(q_pos, k_pos), like=self.c)
        t = self.psi(distance) * self.shrink(q_pos)[..., :, None]
        w1, b1, w2, b2 = self.layers()
        with torch.autocast(t.device.type, enabled=False):
            bias = F.linear(F.relu(w1 * t[..., None] + b1), w2, b2)
        return bias.movedim(-1, -3)

    def terms(self, q_pos: Tensor, k_pos: Tensor, span: int) -> Piecewise:
        """See `IndexBias`."""
        slope, offset, knots = piecewise(*self.layers())
        distance, whole_q, whole_k = in_table(span, q_pos, k_pos)
        warp = self.psi(real(distance, like=self.c))
        return Piecewise(slope, offset, knots, warp, self.shrink(q_pos), whole_q, whole_k)


def piecewise(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(t) = W2 relu(w1 t + b1) + b2 as slopes and offsets between its corners.

    Args:
        w1: (width).
        b1: (width).
        w2: (h width).
        b2: (h).

    Returns:
        slope (h S), offset (h S) and knots (S − 1), ascending, where S = width + 1; see
        `xcope.ops.terms.Piecewise`. Hidden units without slope have their knot at infinity.
    """
    with torch.no_grad():
        knots, order = torch.where(w1 == 0, torch.inf, -b1 / w1).sort()
        rank = order.argsort()
        passed = torch.arange(len(w1) + 1, device=w1.device)[:, None] > rank
        # which units are on in each segment: (S width)
        on = torch.where(w1 == 0, b1 > 0, passed == (w1 > 0))
    # sums of products, not matrix products, which autocast would round
    slope = (w2[:, None] * (w1 * on)).sum(-1)
    offset = (w2[:, None] * (b1 * on)).sum(-1) + b2[:, None]
    return slope, offset, knots


@register
@dataclass(frozen=True, kw_only=True)
class Fire(IndexedScheme):
    """``position: fire``.

    Args:
        mlp_width: hidden units of the network.
        init_c: where c begins; not 0.
        init_l: where the threshold L begins; queries nearer to the start divide by ψ(L).
        shared: all layers have the same network (FIRE-S); if not, each has its own.
    """

    name: ClassVar[str] = "fire"
    title: ClassVar[str] = "Functional interpolation (FIRE)"
    slot: ClassVar[Slot | None] = Slot.BIAS
    paper: ClassVar[str] = "arXiv 2310.04418"
    formula: ClassVar[str] = "q·k + MLP(ψ(i−j)/ψ(max(i, L)))_h"
    oracle: ClassVar[str] = "formula"
    steps: ClassVar[int | None] = FINE
    authors: ClassVar[Mapping[str, Any]] = {"init_c": 0.1, "init_l": 512.0}

    mlp_width: int = 32
    init_c: float = 0.1
    init_l: float = 512.0
    shared: bool = False

    def build(self, geometry: Geometry) -> FireBias:
        """The bias of one layer, or of all."""
        self.require(self.mlp_width >= 1, "mlp_width", "it must be at least 1")
        self.require(self.init_c != 0, "init_c", "it must not be 0, where it has no gradient")
        self.require(self.init_l > 0, "init_l", "it must be above 0")
        return FireBias(geometry.heads, self.mlp_width, self.init_c, self.init_l)
