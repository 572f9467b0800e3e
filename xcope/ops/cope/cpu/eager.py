"""The elementwise work of a tile in torch operations: any device, any floating dtype.

The letters are those of `xcope.ops.cope.reference`, the steps those of `xcope.ops.cope.cpu.walk`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcope.ops.cope.cpu.tiles import BackwardRows, CopeHeads, ForwardRows
from xcope.ops.tiling.eager import exponentiate, hide
from xcope.ops.tiling.tiles import Tile


class Interpolation:
    """b = (1 − u) L[f] + u L[f + 1] at positions p, and its derivatives.

    p may be of a wider dtype, to keep its fraction w. u is w, or, for the soft one-hot,
    sigmoid((2w − 1)·sharpness).
    """

    def __init__(self, L: Tensor, last: int, p: Tensor, sharpness: float):
        self.f = p.clamp_(0, last).long().clamp_(0, last)  # again, as NaN may be any integer
        self.u = p.sub_(self.f).to(L.dtype)
        self.slope = torch.ones_like(L[:1, :1, :1])
        if sharpness:
            self.u.mul_(2).sub_(1).mul_(sharpness).sigmoid_()
            self.u.masked_fill_(self.f == last, 0.0)
            self.slope = 2 * sharpness * self.u * (1 - self.u)
        self.low = L.gather(-1, self.f)
        self.rise = L.gather(-1, self.f + 1).sub_(self.low)
        self.rise.masked_fill_(self.f == last, 0.0)

    def bias(self) -> Tensor:
        return torch.addcmul(self.low, self.u, self.rise)

    def scatter(self, ds: Tensor, dL: Tensor) -> None:
        upper = ds * self.u
        dL.scatter_add_(-1, self.f + 1, upper)
        dL.scatter_add_(-1, self.f, ds - upper)

    def dp(self, ds: Tensor) -> Tensor:
        return ds * self.rise * self.slope


def forward(s: Tensor, a: Tensor, rows: ForwardRows, tile: Tile, heads: CopeHeads) -> None:
    """Turn ``s`` into exp(s + b − m) and move the rows on, ``out`` rescaled to the new m.

    ``a`` is what gates are made of: ``s`` itself or its like.
    """
    s, a = s.mT, a.mT
    hide(s, tile)
    last = rows.last
    counting = rows.start < 0
    if counting.any():
        if a.data_ptr() != s.data_ptr():
            hide(a, tile)
        g = _gates(a, heads).flip(-1)
        p = g.cumsum(-1, dtype=rows.count.dtype).flip(-1).add_(rows.count[..., None])
        rows.count.copy_(p[..., 0])
        s += Interpolation(rows.L, last, p, heads.sharpness).bias()
        if (rows.count >= last).all():
            rows.start.fill_(tile.j0)
    else:
        s += rows.L[..., last, None]

    exponentiate(s, rows)


def backward(
    s: Tensor, dp: Tensor, a: Tensor, rows: BackwardRows, tile: Tile, heads: CopeHeads
) -> None:
    """Turn ``s`` into prob, ``dp`` = v doutᵀ into ds, ``a`` into da and move the rows on.

    Where ``a`` is ``s``, ds + da is left in ``dp``.
    """
    own_gates = a.data_ptr() != s.data_ptr()
    s, dp, a = s.mT, dp.mT, a.mT
    hide(s, tile)
    last = rows.last
    if (rows.start >= tile.j1).all():
        s += (rows.L[..., last] - rows.m)[..., None]
        ds = dp.sub_(rows.D[..., None]).mul_(s.exp_().mul_(rows.inverse[..., None]))
        rows.dL[..., last] += ds.sum(-1)
        if own_gates:
            a.zero_()
        return

    if own_gates:
        hide(a, tile)
    g = _gates(a, heads)
    through = g.cumsum(-1, dtype=rows.count.dtype)
    p = rows.count[..., None] - through + g
    rows.count -= through[..., -1]
    at = Interpolation(rows.L, last, p, heads.sharpness)
    s.add_(at.bias()).sub_(rows.m[..., None]).exp_().mul_(rows.inverse[..., None])
    ds = dp.sub_(rows.D[..., None]).mul_(s)
    at.scatter(ds, rows.dL)
    dg = at.dp(ds).cumsum(-1).add_(rows.lift[..., None])
    rows.lift.copy_(dg[..., -1])
    da = dg.mul_(g).mul_(1 - g)
    if own_gates:
        a.copy_(da)
    else:
        ds += da


def _gates(a: Tensor, heads: CopeHeads) -> Tensor:
    """Of their logits; where distances are counted, 1 wherever a key is seen."""
    return a.gt(-torch.inf).to(a.dtype) if heads.recurrence == "distance" else a.sigmoid()
