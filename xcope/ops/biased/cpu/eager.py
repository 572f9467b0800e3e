"""The elementwise work of a tile in torch operations: any device, any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from xcope.ops.biased.reference import curve, dense, distances, of_heads
from xcope.ops.terms import (
    WITHOUT_GRADIENT,
    ByDistance,
    Piecewise,
    Separable,
    Terms,
    named,
    part,
    placed,
    replaced,
)
from xcope.ops.tiling.eager import exponentiate, hide
from xcope.ops.tiling.tiles import BackwardRows, ForwardRows, Heads, Tile


class Bias:
    """A bias, tile by tile, and the gradients of its vectors.

    Args:
        terms: of the bias; None for none.
        size: b, h, i, j of the attention.
        differentiated: whether gradients are gathered.
    """

    def __init__(
        self, terms: Terms | None, size: tuple[int, int, int, int], differentiated: bool = False
    ):
        self.terms = terms
        self.free = 0 if terms is None else size[3] - placed(terms)
        self.sums: Terms | None = None
        if terms is not None and differentiated:
            vectors = {n: t for n, t in named(terms).items() if n not in WITHOUT_GRADIENT}
            self.sums = replaced(terms, {n: torch.zeros_like(t) for n, t in vectors.items()})

    def add(self, s: Tensor, tile: Tile) -> None:
        """Bias the logits of a tile (b hk r queries K)."""
        if self.terms is not None and tile.j1 > self.free:
            bias = dense(self._of(self.terms, tile, len(s)))
            by_key_head = (*bias.shape[:-3], *s.shape[1:3], *bias.shape[-2:])
            s[..., max(0, self.free - tile.j0) :] += bias.reshape(by_key_head)

    def accumulate(self, ds: Tensor, tile: Tile) -> None:
        """Add what follows from a tile's gradient of the biased logits, (b hk r queries K)."""
        if self.terms is not None and self.sums is not None and tile.j1 > self.free:
            ds = ds.flatten(1, 2)[..., max(0, self.free - tile.j0) :]
            given, sums = (self._of(x, tile, len(ds)) for x in (self.terms, self.sums))
            _accumulate(given, ds, sums)

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the vectors, by name; empty if they were not gathered."""
        if self.sums is None:
            return {}
        return {n: t for n, t in named(self.sums).items() if n not in WITHOUT_GRADIENT}

    def _of(self, terms: Terms, tile: Tile, batches: int) -> Terms:
        batch = slice(tile.batch0, tile.batch0 + batches)
        keys = slice(max(0, tile.j0 - self.free), tile.j1 - self.free)
        return part(terms, batch, slice(tile.i0, tile.i1), keys)


def _accumulate(terms: Terms, ds: Tensor, sums: Terms) -> None:
    """Add to the vectors ``sums`` the gradient of a bias whose own gradient is ds (b h i j)."""
    if isinstance(terms, Separable) and isinstance(sums, Separable):
        sums.row.add_(_like(ds.sum(-1), sums.row))
        sums.key.sub_(_like(ds.sum(-2), sums.key))
    elif isinstance(terms, ByDistance) and isinstance(sums, ByDistance):
        _scatter(ds, distances(terms), sums.table)
    elif isinstance(terms, Piecewise) and isinstance(sums, Piecewise):
        delta = distances(terms)
        t, segment = curve(terms, delta)
        _scatter(ds * (t if t.ndim == 2 else t[:, None]), segment, sums.slope)
        _scatter(ds, segment, sums.offset)
        dt = _like((ds * of_heads(terms.slope, segment)).sum(1), t)
        sums.shrink.add_(_like((dt * terms.warp[delta]).sum(-1), sums.shrink))
        along = _like(dt * terms.shrink[..., None], delta)
        sums.warp.index_add_(0, delta.flatten(), along.flatten())


def _like(x: Tensor, vector: Tensor) -> Tensor:
    """Sum over the batch where the vector has none."""
    return x if x.ndim == vector.ndim else x.sum(0)


def _scatter(x: Tensor, index: Tensor, sums: Tensor) -> None:
    """Add x (b h i j) to (h n) at (i j) or (b i j)."""
    by_head = x.sum(0) if index.ndim == 2 else x.transpose(0, 1)
    sums.index_add_(1, index.flatten(), by_head.flatten(1))


def forward(s: Tensor, rows: ForwardRows, tile: Tile, heads: Heads, bias: Bias) -> None:
    """Turn ``s`` into exp(s + b − m) and move the rows on, ``out`` rescaled to the new m."""
    bias.add(heads.by_head(s), tile)
    s = s.mT
    hide(s, tile)
    exponentiate(s, rows)


def backward(
    s: Tensor, dp: Tensor, rows: BackwardRows, tile: Tile, heads: Heads, bias: Bias
) -> None:
    """Turn ``s`` into prob, ``dp`` = v doutᵀ into ds, and gather the gradient of b."""
    bias.add(heads.by_head(s), tile)
    prob = s.mT
    hide(prob, tile)
    prob.sub_(rows.m[..., None]).exp_().mul_(rows.inverse[..., None])
    dp.mT.sub_(rows.D[..., None]).mul_(prob)
    bias.accumulate(heads.by_head(dp), tile)
