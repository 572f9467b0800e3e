"""The walk over the tiles of CoPE attention: which order, what is carried, what is multiplied.

Forward, per tile of queries, with L = q eᵀ: the keys' tiles are walked from the diagonal to the
start, as the count runs, with one number per row carried: the count so far. Softmax is online.
Once a row's count reaches P − 1 its bias is the constant L[P − 1]: from there on the row is
plain flash attention. Kept for the backward: out, m, 1 / Σ exp(s + b − m), each
row's last count, and the key at which it was reached.

Backward, the other way round: from the start to the diagonal, taking gates off the count. With
D = Σ dout·out and ds_ij = prob_ij (dout_i·v_j − D_i), the gradient of the biased logit:

    dL[f] += ds (1 − w),  dL[f + 1] += ds w        then dq += dL e, de += dLᵀ q
    dp_ij = ds_ij (L[f + 1] − L[f])                0 where the count is clamped
    dg_it = Σ_{j ≤ t} dp_ij                        a gate lifts every key left of it: carried
    da    = dg g (1 − g)                           of the gate's logit
    dq += scale (ds + da) k,  dk += scale (ds + da)ᵀ q,  dv += probᵀ dout

Each pass sees a tile once and nothing larger than a tile is kept: memory O(n (d + P)). What is
elementwise is the *body*'s work (`Body`): `xcope.ops.cope.cpu.eager` or `xcope.ops.cope.cpu.numba`.

A bias of the logits is added to a tile before its gates are made, in torch operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xcope.ops.cope.cpu.tiles import BackwardRows, Call, ForwardRows
from xcope.ops.tiling.tiles import KeySums, Tile, finish, product, rows_of


@dataclass
class Result:
    """What the forward gives: out (u r i dv); the others (u r i), see `BackwardRows`."""

    out: Tensor
    m: Tensor
    inverse: Tensor
    count: Tensor
    start: Tensor

    def of(self, units: slice) -> Result:
        return Result(
            self.out[units],
            self.m[units],
            self.inverse[units],
            self.count[units],
            self.start[units],
        )


@dataclass
class Gradients:
    """Like the tensors of the call that they belong to."""

    q: Tensor
    k: Tensor
    v: Tensor
    e: Tensor
    gate_k: Tensor | None
    head_mix: Tensor | None


@dataclass
class Sums:
    """The gradients of a part of the batch, as far as they are sums over its queries."""

    k: KeySums
    v: KeySums
    gate_k: KeySums
    e: Tensor
    head_mix: Tensor | None


def forward(call: Call) -> Result:
    shape = call.q.shape[:3]
    result = Result(
        out=call.q.new_empty(*shape, call.v.shape[-1]),
        m=call.q.new_empty(shape),
        inverse=call.q.new_empty(shape),
        count=call.q.new_empty(shape, dtype=torch.float64),
        start=call.q.new_empty(shape, dtype=torch.int32),
    )
    for units, part in call.parts():
        for i0, i1, seen in part.query_tiles():
            rows = _forward_rows(part, i0, i1, seen)
            inverse = finish(rows)
            for name, value in {
                "out": rows.out,
                "m": rows.m,
                "inverse": inverse,
                "count": rows.count,
                "start": rows.start.clamp_(min=0),
            }.items():
                whole = getattr(result, name)
                whole[units, :, i0:i1] = value.view(whole[units, :, i0:i1].shape)
    return result


def _forward_rows(call: Call, i0: int, i1: int, seen: int) -> ForwardRows:
    """One tile of queries against all the keys it sees, from the diagonal to the start."""
    q = rows_of(call.q, i0, i1)
    u, R = q.shape[:2]
    e, last = call.table(seen + 1)
    rows = ForwardRows(
        L=_table_logits(call, q, e),
        last=last,
        m=q.new_full((u, R), -torch.inf),
        total=q.new_zeros(u, R),
        out=q.new_zeros(u, R, call.v.shape[-1]),
        count=q.new_zeros(u, R, dtype=torch.float64),
        start=q.new_full((u, R), -1, dtype=torch.int32),
    )
    q = q * call.scale
    for tile in reversed(call.key_tiles(i0, i1, seen)):
        s = _logits(call, q, tile)
        a = _mix(call, _gate_logits(call, q, s, tile), tile)
        call.mask(tile, s, a)
        call.body.forward(s, a, rows, tile, call.sharpness)
        rows.out.baddbmm_(s.mT, call.v[:, tile.keys])
    return rows


def backward(call: Call, result: Result, dout: Tensor) -> Gradients:
    grads = Gradients(
        q=torch.empty_like(call.q),
        k=torch.empty_like(call.k),
        v=torch.empty_like(call.v),
        e=torch.zeros_like(call.e),
        gate_k=None if call.gate_k is None else torch.empty_like(call.gate_k),
        head_mix=None if call.head_mix is None else torch.zeros_like(call.head_mix),
    )
    for units, part in call.parts():
        sums = Sums(KeySums(part), KeySums(part), KeySums(part), grads.e, grads.head_mix)
        dq, its = grads.q[units], result.of(units)
        for i0, i1, seen in part.query_tiles():
            rows = _backward_rows(part, its, dout[units], sums, i0, i1, seen)
            dq[:, :, i0:i1] = rows.view(dq[:, :, i0:i1].shape)
        sums.k.move_to(grads.k[units])
        sums.v.move_to(grads.v[units])
        if grads.gate_k is not None:
            sums.gate_k.move_to(grads.gate_k[units])
    return grads


def _backward_rows(
    call: Call, result: Result, dout: Tensor, sums: Sums, i0: int, i1: int, seen: int
) -> Tensor:
    """One tile of queries against all the keys it sees, from the start to the diagonal.

    Their dq, (u R d).
    """
    q, dout = rows_of(call.q, i0, i1), rows_of(dout, i0, i1)
    count = rows_of(result.count, i0, i1)
    e, last = call.table(int(count.max()) + 2)
    L = _table_logits(call, q, e)
    rows = BackwardRows(
        L=L,
        dL=call.table_room(q, L.shape[-1], "dL").zero_(),
        last=last,
        m=rows_of(result.m, i0, i1),
        inverse=rows_of(result.inverse, i0, i1),
        D=(dout * rows_of(result.out, i0, i1)).sum(-1),
        count=count,
        lift=q.new_zeros(count.shape),
        start=rows_of(result.start, i0, i1),
    )
    scaled, dq = q * call.scale, torch.zeros_like(q)
    for tile in call.key_tiles(i0, i1, seen):
        keys = tile.keys
        s = _logits(call, scaled, tile)
        raw = _gate_logits(call, scaled, s, tile)
        a = _mix(call, raw, tile)
        raw = raw.clone() if call.head_mix is not None and raw is s else raw
        call.mask(tile, s, a)
        dp = product(call.v[:, keys], dout.mT, call.room(tile, "dp"))
        call.body.backward(s, dp, a, rows, tile, call.sharpness)
        sums.v.add(tile, s, dout)
        if a is not s:
            _gate_backward(call, sums, scaled, raw, a, dp, dq, tile)
        if call.bias is not None:
            call.bias.accumulate(call.by_head(dp), tile)
        sums.k.add(tile, dp, scaled)
        dq.baddbmm_(dp.mT, call.k[:, keys])
    dq.mul_(call.scale)
    _table_backward(call, sums, q, e, rows.dL, dq)
    return dq


def _table_logits(call: Call, q: Tensor, e: Tensor) -> Tensor:
    """L = q eᵀ, (u R p+…)."""
    L = call.table_room(q, e.shape[-2], "L")
    if e.ndim == 2:
        torch.mm(q.flatten(0, 1), e.mT, out=L.flatten(0, 1))
    else:
        torch.matmul(call.rows_by_head(q), e.mT, out=call.rows_by_head(L))
    return L


def _table_backward(call: Call, sums: Sums, q: Tensor, e: Tensor, dL: Tensor, dq: Tensor) -> None:
    """dq += dL e, de += dLᵀ q."""
    de = sums.e[..., : e.shape[-2], :]
    if e.ndim == 2:
        dq.add_(dL @ e)
        de.addmm_(dL.flatten(0, 1).mT, q.flatten(0, 1))
    else:
        dL = call.rows_by_head(dL)
        dq.add_((dL @ e).view(dq.shape))
        de.add_((dL.mT @ call.rows_by_head(q)).sum(0))


def _logits(call: Call, q: Tensor, tile: Tile) -> Tensor:
    """scale · q·k, biased."""
    s = product(call.k[:, tile.keys], q.mT, call.room(tile, "s"))
    if call.bias is not None:
        call.bias.add(call.by_head(s), tile)
    return s


def _gate_logits(call: Call, q: Tensor, s: Tensor, tile: Tile) -> Tensor:
    """scale · q·gate_k, or the logits themselves."""
    if call.gate_k is None:
        return s
    return product(call.gate_k[:, tile.keys], q.mT, call.room(tile, "gates"))


def _mix(call: Call, raw: Tensor, tile: Tile) -> Tensor:
    """The gates' logits with their heads mixed."""
    if call.head_mix is None:
        return raw
    return call.room(tile, "mixed").copy_(_across_heads(call.head_mix, raw))


def _across_heads(head_mix: Tensor, a: Tensor) -> Tensor:
    by_head = a.view(-1, len(head_mix), *a.shape[1:])
    return torch.einsum("gh,bhkr->bgkr", head_mix, by_head).flatten(0, 1)


def _gate_backward(
    call: Call, sums: Sums, q: Tensor, raw: Tensor, da: Tensor, ds: Tensor, dq: Tensor,
    tile: Tile,
) -> None:  # fmt: skip
    """Takes da back through the mixing of heads to the gates' keys, or into ``ds``."""
    if call.head_mix is not None and sums.head_mix is not None:
        da_of, raw_of = (x.view(-1, call.heads, *x.shape[1:]) for x in (da, raw))
        sums.head_mix += torch.einsum("bgkr,bhkr->gh", da_of, raw_of)
        da = _across_heads(call.head_mix.mT, da)
    if call.gate_k is None:
        ds += da
        return
    sums.gate_k.add(tile, da, q)
    dq.baddbmm_(da.mT, call.gate_k[:, tile.keys])
