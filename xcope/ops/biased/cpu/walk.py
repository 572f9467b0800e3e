"""The walk over the tiles of attention with an index bias: flash attention, plus b.

Forward, per tile of queries: the keys' tiles are walked from the diagonal to the start (most
biases fall with distance, so that the largest logit is met early); softmax is online. Kept for
the backward: out, m, 1 / Σ exp(y − m), where y_ij = s_ij + b_ij.

Backward, with D = Σ dout·out and prob_ij = exp(y_ij − m) / Σ:

    ds_ij = prob_ij (dout_i·v_j − D_i)             of the biased logit, so of b_ij, too
    dq += scale ds k,  dk += scale dsᵀ q,  dv += probᵀ dout

No pass keeps anything larger than a tile. What is elementwise is the *body*'s work (`Body`):
`xcope.ops.biased.cpu.eager` or `xcope.ops.biased.cpu.numba`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xcope.ops.biased.terms import Terms
from xcope.ops.tiling.tiles import (
    BackwardRows,
    ForwardRows,
    Heads,
    KeySums,
    Sizes,
    Tile,
    finish,
    rows_of,
)


class Bias(Protocol):
    """What a body has made of the terms, see `xcope.ops.biased.cpu.eager.Bias`."""

    def gradients(self) -> dict[str, Tensor]:
        """Of the vectors, by name; empty if they were not gathered."""


class Body(Sizes, Protocol):
    """The elementwise work of a tile."""

    @staticmethod
    def Bias(  # noqa: N802
        terms: Terms | None, size: tuple[int, int, int, int], differentiated: bool = False
    ) -> Bias:
        """The terms as the functions below want them."""

    @staticmethod
    def forward(s: Tensor, rows: ForwardRows, tile: Tile, call: Heads, bias: Any) -> None:
        """Turns ``s`` into exp(s + b − m) and moves the rows on, ``out`` rescaled to the new m."""

    @staticmethod
    def backward(
        s: Tensor, dp: Tensor, rows: BackwardRows, tile: Tile, call: Heads, bias: Any
    ) -> None:
        """Turns ``s`` into prob, ``dp`` = v doutᵀ into ds, and gathers the gradient of b."""


@dataclass
class Result:
    """What the forward gives: out (u r i dv); the others (u r i), see `BackwardRows`."""

    out: Tensor
    m: Tensor
    inverse: Tensor


def forward(call: Heads, body: Body, bias: Bias) -> Result:
    shape = call.q.shape[:3]
    out = call.q.new_empty(*shape, call.v.shape[-1])
    result = Result(out, call.q.new_empty(shape), call.q.new_empty(shape))
    for units, part in call.parts():
        for i0, i1, tiles in part.query_tiles():
            rows = _forward_rows(part, body, bias, i0, i1, tiles)
            inverse = finish(rows)
            for whole, value in (
                (result.out, rows.out),
                (result.m, rows.m),
                (result.inverse, inverse),
            ):
                place = whole[units, :, i0:i1]
                place.copy_(value.view(place.shape))
    return result


def _forward_rows(
    call: Heads, body: Body, bias: Bias, i0: int, i1: int, tiles: list[Tile]
) -> ForwardRows:
    """One tile of queries against all the keys it sees."""
    q = rows_of(call.q, i0, i1).mul_(call.scale)
    u, R = q.shape[:2]
    rows = ForwardRows(
        m=q.new_full((u, R), -torch.inf),
        total=q.new_zeros(u, R),
        out=q.new_zeros(u, R, call.v.shape[-1]),
    )
    for tile in reversed(tiles):
        s = call.product("s", call.k[:, tile.keys], q)
        call.mask(tile, s)
        body.forward(s, rows, tile, call, bias)
        rows.out.baddbmm_(s.mT, call.v[:, tile.keys])
    return rows


@dataclass
class Gradients:
    """Like the tensors of the call that they belong to."""

    q: Tensor
    k: Tensor
    v: Tensor


def backward(call: Heads, body: Body, bias: Bias, result: Result, dout: Tensor) -> Gradients:
    grads = Gradients(*map(torch.empty_like, (call.q, call.k, call.v)))
    for units, part in call.parts():
        kept = Result(result.out[units], result.m[units], result.inverse[units])
        dq, dk, dv = grads.q[units], KeySums(part), KeySums(part)
        for i0, i1, tiles in part.query_tiles():
            rows = _backward_rows(part, body, bias, kept, dout[units], dk, dv, i0, i1, tiles)
            dq[:, :, i0:i1] = rows.view(dq[:, :, i0:i1].shape)
        dk.move_to(grads.k[units])
        dv.move_to(grads.v[units])
    return grads


def _backward_rows(
    call: Heads, body: Body, bias: Bias, result: Result, dout: Tensor, dk: KeySums, dv: KeySums,
    i0: int, i1: int, tiles: list[Tile],
) -> Tensor:  # fmt: skip
    """One tile of queries against all the keys it sees; their dq (u R d)."""
    q, dout = rows_of(call.q, i0, i1).mul_(call.scale), rows_of(dout, i0, i1)
    rows = BackwardRows(
        m=rows_of(result.m, i0, i1),
        inverse=rows_of(result.inverse, i0, i1),
        D=(dout * rows_of(result.out, i0, i1)).sum(-1),
    )
    dq = torch.zeros_like(q)
    for tile in tiles:
        k, v = call.k[:, tile.keys], call.v[:, tile.keys]
        s = call.product("s", k, q)
        call.mask(tile, s)
        dp = call.product("dp", v, dout)
        body.backward(s, dp, rows, tile, call, bias)
        dv.add(tile, s, dout)
        dk.add(tile, dp, q)
        dq.baddbmm_(dp.mT, k)
    return dq.mul_(call.scale)
