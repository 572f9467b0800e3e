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

from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from xcope.ops.biased.cpu import eager
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.terms import Terms
from xcope.ops.tiling.tiles import (
    BackwardRows,
    ForwardRows,
    Heads,
    KeySums,
    Sizes,
    Tile,
    compiled_or_none,
    finish,
    rows_of,
    sorted_by_key_head,
)


class Bias(Protocol):
    """A bias as a body reads it, see `xcope.ops.biased.cpu.eager.Bias`."""

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the vectors, by name; empty if they were not gathered."""


class Body(Sizes, Protocol):
    """The elementwise work of a tile."""

    @staticmethod
    def Bias(  # noqa: N802
        terms: Terms | None, size: tuple[int, int, int, int], differentiated: bool = False
    ) -> Bias:
        """The terms as the functions below read them."""

    @staticmethod
    def forward(s: Tensor, rows: ForwardRows, tile: Tile, heads: Heads, bias: Any) -> None:
        """Turn ``s`` into exp(s + b − m) and move the rows on, ``out`` rescaled to the new m."""

    @staticmethod
    def backward(
        s: Tensor, dp: Tensor, rows: BackwardRows, tile: Tile, heads: Heads, bias: Any
    ) -> None:
        """Turn ``s`` into prob, ``dp`` = v doutᵀ into ds, and gather the gradient of b."""


class Saved(NamedTuple):
    """What the forward gives."""

    out: Tensor  # (b h i dv)
    m: Tensor  # (b h i), about the largest y; finite
    inverse: Tensor  # (b h i), 1 / Σ exp(y − m); 0 in rows that see no key


def body_for(dtype: torch.dtype, device: torch.device) -> Body:
    """The fastest body there is: compiled for float32 on CPUs that numba knows, else eager."""
    if device.type == "cpu" and dtype == torch.float32:
        return compiled_body() or cast(Body, eager)
    return cast(Body, eager)


@cache
def compiled_body() -> Body | None:
    """The body compiled by numba, or None where it cannot be had; says so once."""
    what = "attention with an index bias"
    return cast(Body | None, compiled_or_none("xcope.ops.biased.cpu.numba", what))


def forward(inputs: BiasedInputs) -> Saved:
    """All tiles of queries; inputs are float32 or float64, finite, their mask has 4 dimensions."""
    (b, h, i, _), j, dv = inputs.q.shape, inputs.k.shape[2], inputs.v.shape[-1]
    body = body_for(inputs.q.dtype, inputs.q.device)
    q, k, v, hidden = sorted_by_key_head(inputs.q, inputs.k, inputs.v, inputs.mask)
    scale, causal = inputs.scale, inputs.causal
    heads = Heads(q=q, k=k, v=v, hidden=hidden, scale=scale, causal=causal, heads=h, body=body)
    bias = body.Bias(inputs.bias, (b, h, i, j))
    saved = Saved(q.new_empty(b, h, i, dv), q.new_empty(b, h, i), q.new_empty(b, h, i))
    for units, part in heads.parts():
        for i0, i1, tiles in part.query_tiles():
            of_rows = _forward_rows(part, body, bias, i0, i1, tiles)
            for whole, value in zip(saved, of_rows, strict=True):
                place = whole.view(*q.shape[:3], *whole.shape[3:])[units, :, i0:i1]
                place.copy_(value.view(place.shape))
    return saved


def _forward_rows(
    heads: Heads, body: Body, bias: Bias, i0: int, i1: int, tiles: list[Tile]
) -> Saved:
    """One tile of queries against all the keys it sees, from the diagonal to the start; (u R …)."""
    q = rows_of(heads.q, i0, i1).mul_(heads.scale)
    rows = ForwardRows(
        m=q.new_full(q.shape[:2], -torch.inf),
        total=q.new_zeros(q.shape[:2]),
        out=q.new_zeros(*q.shape[:2], heads.v.shape[-1]),
    )
    for tile in reversed(tiles):
        s = heads.product("s", heads.k[:, tile.keys], q)
        if heads.hidden is not None:
            heads.mask(tile, s)
        body.forward(s, rows, tile, heads, bias)
        rows.out.baddbmm_(s.mT, heads.v[:, tile.keys])
    inverse = finish(rows)
    return Saved(rows.out, rows.m, inverse)


def backward(dout: Tensor, saved: Saved, inputs: BiasedInputs, of_bias: bool) -> dict[str, Tensor]:
    """Gradients by name; those of the bias' vectors only ``of_bias``."""
    (b, h, i, _), j = inputs.q.shape, inputs.k.shape[2]
    body = body_for(inputs.q.dtype, inputs.q.device)
    q, k, v, hidden = sorted_by_key_head(inputs.q, inputs.k, inputs.v, inputs.mask)
    scale, causal = inputs.scale, inputs.causal
    heads = Heads(q=q, k=k, v=v, hidden=hidden, scale=scale, causal=causal, heads=h, body=body)
    bias = body.Bias(inputs.bias, (b, h, i, j), of_bias)
    kept = [t.view(*q.shape[:3], *t.shape[3:]) for t in (dout.contiguous(), *saved)]
    grads = {"q": torch.empty_like(q), "k": torch.empty_like(k), "v": torch.empty_like(v)}
    for units, part in heads.parts():
        dk, dv = KeySums(part), KeySums(part)
        dout, *its = (t[units] for t in kept)
        for i0, i1, tiles in part.query_tiles():
            dq = _backward_rows(part, body, bias, dout, Saved(*its), dk, dv, i0, i1, tiles)
            place = grads["q"][units, :, i0:i1]
            place.copy_(dq.view(place.shape))
        dk.move_to(grads["k"][units])
        dv.move_to(grads["v"][units])
    found = {name: grad.view(getattr(inputs, name).shape) for name, grad in grads.items()}
    return found | bias.gradients()


def _backward_rows(
    heads: Heads, body: Body, bias: Bias, dout: Tensor, saved: Saved, dk: KeySums, dv: KeySums,
    i0: int, i1: int, tiles: list[Tile],
) -> Tensor:  # fmt: skip
    """One tile of queries against all the keys it sees, from the start to the diagonal.

    Args:
        dout: of all queries, (u r i dv).
        saved: of all queries, (u r i …).
        dk: gradients of the keys, which are added to.
        dv: gradients of the values, which are added to.

    Returns:
        The queries' gradients, (u R d).
    """
    q, dout = rows_of(heads.q, i0, i1).mul_(heads.scale), rows_of(dout, i0, i1)
    rows = BackwardRows(
        m=rows_of(saved.m, i0, i1),
        inverse=rows_of(saved.inverse, i0, i1),
        D=(dout * rows_of(saved.out, i0, i1)).sum(-1),
    )
    dq = torch.zeros_like(q)
    for tile in tiles:
        k, v = heads.k[:, tile.keys], heads.v[:, tile.keys]
        s, dp = heads.product("s", k, q), heads.product("dp", v, dout)
        if heads.hidden is not None:
            heads.mask(tile, s)
        body.backward(s, dp, rows, tile, heads, bias)
        dv.add(tile, s, dout)
        dk.add(tile, dp, q)
        dq.baddbmm_(dp.mT, k)
    return dq.mul_(heads.scale)
