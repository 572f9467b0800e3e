"""The walk over the tiles of attention with an index bias: flash attention, plus b.

Forward, per tile of queries: the keys' tiles are walked from the diagonal to the start (most
biases fall with distance, so that the largest logit is met early); softmax is online. Kept for
the backward: out, m, 1 / Σ exp(y − m), where y_ij = s_ij + b_ij.

Backward, with D = Σ dout·out and prob_ij = exp(y_ij − m) / Σ:

    ds_ij = prob_ij (dout_i·v_j − D_i)             of the biased logit, so of b_ij, too
    dq += scale ds k,  dk += scale dsᵀ q,  dv += probᵀ dout

No pass keeps anything larger than a tile. What is elementwise is the *body*'s work (`Body`):
`xcope.ops.biased.cpu.eager` or `xcope.ops.biased.cpu.numba`.

Shape notation: (b h i d) of the call, and as in `xcope.ops.tiling.tiles`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.terms import Terms
from xcope.ops.tiling.tiles import (
    BackwardRows,
    ForwardRows,
    Heads,
    KeySums,
    Sizes,
    Tile,
    finish,
    product,
    rows_of,
    sorted_by_key_head,
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


def forward(inputs: BiasedInputs, body: Body) -> tuple[Tensor, Tensor, Tensor]:
    """out (b h i dv); m and 1 / Σ exp(y − m), (b h i), which is 0 in rows that see no key.

    Tensors are float32 or float64, and finite; the mask has 4 dimensions.
    """
    (b, h, i, _), j, dv = inputs.q.shape, inputs.k.shape[2], inputs.v.shape[-1]
    whole, bias = _sorted(inputs, body), body.Bias(inputs.bias, (b, h, i, j))
    of_rows = whole.q.shape[:3]
    out = whole.q.new_empty(*of_rows, dv)
    m, inverse = out.new_empty(of_rows), out.new_empty(of_rows)
    for units, call in whole.parts():
        for i0, i1, seen in call.query_tiles():
            q = rows_of(call.q, i0, i1).mul_(call.scale)
            rows = ForwardRows(
                m=q.new_full(q.shape[:2], -torch.inf),
                total=q.new_zeros(q.shape[:2]),
                out=q.new_zeros(*q.shape[:2], dv),
            )
            for tile in reversed(call.key_tiles(i0, i1, seen)):
                s = product(call.k[:, tile.keys], q.mT, call.room(tile, "s"))
                call.mask(tile, s)
                body.forward(s, rows, tile, call, bias)
                rows.out.baddbmm_(s.mT, call.v[:, tile.keys])
            inverse_rows = finish(rows)
            for t, of_tile in ((out, rows.out), (m, rows.m), (inverse, inverse_rows)):
                place = t[units, :, i0:i1]
                place.copy_(of_tile.view(place.shape))
    return out.view(b, h, i, dv), m.view(b, h, i), inverse.view(b, h, i)


def backward(
    inputs: BiasedInputs, body: Body, dout: Tensor, saved: tuple[Tensor, ...], of_vectors: bool
) -> dict[str, Tensor]:
    """The gradients by name, of vectors if ``of_vectors``; ``saved`` is what `forward` gave."""
    (b, h, i, _), j = inputs.q.shape, inputs.k.shape[2]
    whole, bias = _sorted(inputs, body), body.Bias(inputs.bias, (b, h, i, j), of_vectors)
    u, r = whole.q.shape[:2]
    out, m, inverse = (t.view(u, r, i, *t.shape[3:]) for t in saved)
    dout = dout.contiguous().view(out.shape)
    dq, dk, dv = (torch.empty_like(t) for t in (whole.q, whole.k, whole.v))
    for units, call in whole.parts():
        dk_sums, dv_sums = KeySums(call), KeySums(call)
        for i0, i1, seen in call.query_tiles():
            q, dout_rows = rows_of(call.q, i0, i1).mul_(call.scale), rows_of(dout[units], i0, i1)
            rows = BackwardRows(
                m=rows_of(m[units], i0, i1),
                inverse=rows_of(inverse[units], i0, i1),
                D=(dout_rows * rows_of(out[units], i0, i1)).sum(-1),
            )
            dq_rows = torch.zeros_like(q)
            for tile in call.key_tiles(i0, i1, seen):
                k, v = call.k[:, tile.keys], call.v[:, tile.keys]
                s = product(k, q.mT, call.room(tile, "s"))
                call.mask(tile, s)
                dp = product(v, dout_rows.mT, call.room(tile, "dp"))
                body.backward(s, dp, rows, tile, call, bias)
                dv_sums.add(tile, s, dout_rows)
                dk_sums.add(tile, dp, q)
                dq_rows.baddbmm_(dp.mT, k)
            place = dq[units, :, i0:i1]
            place.copy_(dq_rows.mul_(call.scale).view(place.shape))
        dk_sums.move_to(dk[units])
        dv_sums.move_to(dv[units])
    like = inputs.q, inputs.k, inputs.v
    grads = {n: t.view(of.shape) for n, t, of in zip("qkv", (dq, dk, dv), like, strict=True)}
    return grads | bias.gradients()


def _sorted(inputs: BiasedInputs, body: Body) -> Heads:
    """The call by key head, cut as the body likes."""
    q, k, v, hidden = sorted_by_key_head(inputs.q, inputs.k, inputs.v, inputs.mask)
    return Heads(
        q=q,
        k=k,
        v=v,
        hidden=hidden,
        scale=inputs.scale,
        causal=inputs.causal,
        heads=inputs.q.shape[1],
        sizes=body,
    )
