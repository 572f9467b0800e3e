"""The walk over the tiles of attention with an index bias: flash attention, plus b.

Forward, per tile of queries: the keys' tiles are walked from the diagonal to the start (most
biases fall with distance, so that the largest logit is met early); softmax is online. Kept for
the backward: out, m, 1 / Σ exp(y − m), where y_ij = s_ij + b_ij.

Backward, with D = Σ dout·out and prob_ij = exp(y_ij − m) / Σ:

    ds_ij = prob_ij (dout_i·v_j − D_i)             of the biased logit, so of b_ij, too
    dq += scale ds k,  dk += scale dsᵀ q,  dv += probᵀ dout

Tiles that a window hides from all their queries are left out. A sink is the operator's matter.

No pass keeps anything larger than a tile. What is elementwise is in `xcope.ops.biased.cpu.eager`.
float32 on CPUs is computed by `xcope.ops.compiled`, which takes the same steps.

Shape notation: (b h i d) of the call, and as in `xcope.ops.tiling.tiles`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from xcope.ops.biased.cpu import eager
from xcope.ops.biased.cpu.eager import Bias
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.compiled import call_for
from xcope.ops.inputs import to_heads_last
from xcope.ops.tiling.tiles import (
    BackwardRows,
    ForwardRows,
    Heads,
    KeySums,
    Tile,
    finish,
    rows_of,
    sorted_by_key_head,
)

if TYPE_CHECKING:
    from xcope.ops.compiled.call import Call


class Saved(NamedTuple):
    """What the forward gives."""

    out: Tensor  # (b h i dv)
    m: Tensor  # (b h i), about the largest y; finite
    inverse: Tensor  # (b h i), 1 / Σ exp(y − m); 0 in rows that see no key


def compiled(inputs: BiasedInputs, of_bias: bool = False) -> Call | None:
    """The same attention compiled, where that can be had."""
    call = call_for(inputs.q)
    if call is None:
        return None
    return call(
        inputs.q,
        inputs.k,
        inputs.v,
        scale=inputs.scale,
        causal=inputs.causal,
        mask=inputs.mask,
        window=inputs.window,
        bias=inputs.bias,
        of_bias=of_bias,
    )


def forward(inputs: BiasedInputs) -> Saved:
    """All tiles of queries; inputs are float32 or float64, finite, their mask has 4 dimensions."""
    call = compiled(inputs)
    if call:
        return Saved(*call.forward()[:3])
    (b, h, i, _), j, dv = inputs.q.shape, inputs.k.shape[2], inputs.v.shape[-1]
    q, k, v, hidden = sorted_by_key_head(inputs.q, inputs.k, inputs.v, inputs.mask)
    scale, causal = inputs.scale, inputs.causal
    heads = Heads(
        q=q, k=k, v=v, hidden=hidden, window=inputs.window, scale=scale, causal=causal, heads=h
    )
    bias = Bias(inputs.bias, (b, h, i, j))
    saved = Saved(q.new_empty(b, h, i, dv), q.new_empty(b, h, i), q.new_empty(b, h, i))
    for units, part in heads.parts():
        for i0, i1, tiles in part.query_tiles():
            of_rows = _forward_rows(part, bias, i0, i1, tiles)
            for whole, value in zip(saved, of_rows, strict=True):
                place = whole.view(*q.shape[:3], *whole.shape[3:])[units, :, i0:i1]
                place.copy_(value.view(place.shape))
    return saved._replace(out=to_heads_last(saved.out))


def _forward_rows(heads: Heads, bias: Bias, i0: int, i1: int, tiles: list[Tile]) -> Saved:
    """One tile of queries against all the keys it sees, from the diagonal to the start; (u R …)."""
    q = rows_of(heads.q, i0, i1).mul_(heads.scale)
    rows = ForwardRows(
        m=q.new_full(q.shape[:2], -torch.inf),
        total=q.new_zeros(q.shape[:2]),
        out=q.new_zeros(*q.shape[:2], heads.v.shape[-1]),
    )
    for tile in reversed(tiles):
        s = heads.product("s", heads.k[:, tile.keys], q)
        heads.mask(tile, s)
        eager.forward(s, rows, tile, heads, bias)
        rows.out.baddbmm_(s.mT, heads.v[:, tile.keys])
    inverse = finish(rows)
    return Saved(rows.out, rows.m, inverse)


def backward(dout: Tensor, saved: Saved, inputs: BiasedInputs, of_bias: bool) -> dict[str, Tensor]:
    """Gradients by name; those of the bias' vectors only ``of_bias``."""
    call = compiled(inputs, of_bias)
    if call:
        return call.backward(dout, *saved)
    (b, h, i, _), j = inputs.q.shape, inputs.k.shape[2]
    q, k, v, hidden = sorted_by_key_head(inputs.q, inputs.k, inputs.v, inputs.mask)
    scale, causal = inputs.scale, inputs.causal
    heads = Heads(
        q=q, k=k, v=v, hidden=hidden, window=inputs.window, scale=scale, causal=causal, heads=h
    )
    bias = Bias(inputs.bias, (b, h, i, j), of_bias)
    kept = [t.contiguous().view(*q.shape[:3], *t.shape[3:]) for t in (dout, *saved)]
    grads = {"q": torch.empty_like(q), "k": torch.empty_like(k), "v": torch.empty_like(v)}
    for units, part in heads.parts():
        dk, dv = KeySums(part), KeySums(part)
        dout, *its = (t[units] for t in kept)
        for i0, i1, tiles in part.query_tiles():
            dq = _backward_rows(part, bias, dout, Saved(*its), dk, dv, i0, i1, tiles)
            place = grads["q"][units, :, i0:i1]
            place.copy_(dq.view(place.shape))
        dk.move_to(grads["k"][units])
        dv.move_to(grads["v"][units])
    found = {
        name: to_heads_last(grad.view(getattr(inputs, name).shape)) for name, grad in grads.items()
    }
    return found | bias.gradients()


def _backward_rows(
    heads: Heads, bias: Bias, dout: Tensor, saved: Saved, dk: KeySums, dv: KeySums,
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
        heads.mask(tile, s)
        eager.backward(s, dp, rows, tile, heads, bias)
        dv.add(tile, s, dout)
        dk.add(tile, dp, q)
        dq.baddbmm_(dp.mT, k)
    return dq.mul_(heads.scale)
