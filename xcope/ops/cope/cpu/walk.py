"""The walk over the tiles of CoPE and its kin: which order, what is carried, what is multiplied.

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
elementwise is in `xcope.ops.cope.cpu.eager`. float32 on CPUs is computed by `xcope.ops.compiled`,
which takes the same steps.

What is said of q holds of r where it is given: it reads the table, and meets the gates' keys. What
decays and sticks do to a tile instead of counting is in `xcope.ops.cope.cpu.decay`. Sticks have no
softmax: m is 0, 1 / Σ exp is 1, and D_i is 0, or dout_i·v_i where the own value gets what is left:
then out_i = v_i + Σ_j A_ij (v_j − v_i).

A bias of the logits is added to a tile before its gates are made, in torch operations. Numbers are
float32 or float64, all of them finite; documents are run one by one, elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.cpu.eager import Bias
from xcope.ops.compiled import call_for
from xcope.ops.cope.cpu import decay, eager
from xcope.ops.cope.cpu.tiles import BackwardRows, CopeHeads, ForwardRows
from xcope.ops.cope.inputs import CopeInputs
from xcope.ops.inputs import heads_last, to_heads_last
from xcope.ops.tiling.tiles import (
    KeySums,
    Tile,
    finish,
    rows_of,
    sorted_by_key_head,
)

if TYPE_CHECKING:
    from xcope.ops.compiled.call import Call

HEADS = ("q", "r", "k", "v", "gate_k")
SPARE = 33  # rows of zeros that a table may be read beyond its end, see `_table_logits`


class Saved(NamedTuple):
    """What the forward gives, and the backward needs, of each row.

    Args:
        out: (b h i dv).
        m: (b h i), about the largest biased logit; finite.
        inverse: (b h i), 1 / Σ exp(s + b − m); 0 in rows that see no key.
        counted: (b h i), float64, Σ of the gates that were counted, or of what was taken off.
        start: (b h i), int32, the first key that was counted.
    """

    out: Tensor
    m: Tensor
    inverse: Tensor
    counted: Tensor
    start: Tensor


def compiled(inputs: CopeInputs, of_bias: bool = False) -> Call | None:
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
        recurrence=inputs.recurrence,
        table=inputs.pos_emb,
        gate_k=inputs.gate_k,
        r=inputs.r,
        head_mix=inputs.head_mix,
        sharpness=inputs.sharpness,
        gate_scale=inputs.gate_scale,
        rate=inputs.rate,
        own=inputs.own,
        remainder=inputs.remainder,
        bare=inputs.bare,
        hidden_gates=inputs.hidden_gates,
    )


def sorted_heads(inputs: CopeInputs, of_bias: bool = False) -> CopeHeads:
    """The inputs sorted by key head; ``of_bias``: gradients of the bias are gathered."""
    q, k, v, hidden = sorted_by_key_head(inputs.q, inputs.k, inputs.v, inputs.mask)
    gate_k, r, e, bias = inputs.gate_k, inputs.r, inputs.pos_emb, None
    if inputs.bias is not None:
        bias = Bias(inputs.bias, (*inputs.q.shape[:3], k.shape[1]), of_bias)
    return CopeHeads(
        q=q,
        k=k,
        v=v,
        hidden=hidden,
        window=inputs.window,
        scale=inputs.scale,
        causal=inputs.causal,
        heads=inputs.q.shape[1],
        e=None if e is None else F.pad(e, (0, 0, 0, SPARE)),
        max_pos=0 if e is None else e.shape[-2],
        gate_k=None if gate_k is None else gate_k.contiguous().flatten(0, 1),
        r=None if r is None else r.contiguous().view(*q.shape[:3], r.shape[-1]),
        head_mix=inputs.head_mix,
        bias=bias,
        sharpness=inputs.sharpness,
        recurrence=inputs.recurrence,
        gate_scale=inputs.gate_scale,
        rate=inputs.rate,
        own=inputs.own,
        remainder=inputs.remainder,
        bare=inputs.bare,
        hidden_gates=inputs.hidden_gates,
    )


def empty(inputs: CopeInputs) -> Saved:
    """Memory for what `forward` gives."""
    q, rows = inputs.q, inputs.q.shape[:3]
    return Saved(
        out=heads_last(q, *rows, inputs.v.shape[-1]),
        m=q.new_empty(rows),
        inverse=q.new_empty(rows),
        counted=q.new_empty(rows, dtype=torch.float64),
        start=q.new_empty(rows, dtype=torch.int32),
    )


def forward(inputs: CopeInputs) -> Saved:
    """Attention, and what the backward needs of it."""
    call = compiled(inputs)
    if call:
        return Saved(*call.forward())
    heads, saved = sorted_heads(inputs), empty(inputs)
    saved = saved._replace(out=heads.q.new_empty(saved.out.shape))
    for key_heads, part in heads.parts():
        for i0, i1, tiles in part.query_tiles():
            for whole, value in zip(saved, _forward_rows(part, i0, i1, tiles), strict=True):
                place = whole.view(*heads.q.shape[:3], *whole.shape[3:])[key_heads, :, i0:i1]
                place.copy_(value.view(place.shape))
    return saved._replace(out=to_heads_last(saved.out))


def _forward_rows(heads: CopeHeads, i0: int, i1: int, tiles: list[Tile]) -> Saved:
    """One tile of queries against all the keys it sees, from the diagonal to the start; (u R …)."""
    q = rows_of(heads.q, i0, i1)
    r = q if heads.r is None else rows_of(heads.r, i0, i1)
    L, _, last = _table_logits(heads, r, tiles[-1].j1 + 1 if tiles else 1)
    rows = ForwardRows(
        L=L,
        last=last,
        m=q.new_full(q.shape[:2], -torch.inf),
        total=q.new_zeros(q.shape[:2]),
        out=q.new_zeros(*q.shape[:2], heads.v.shape[-1]),
        count=q.new_zeros(q.shape[:2], dtype=torch.float64),
        start=q.new_full(q.shape[:2], -1, dtype=torch.int32),
    )
    q, of_gates = q * heads.scale, r * heads.gate_scale
    work = eager.forward if heads.e is not None else decay.forward
    for tile in reversed(tiles):
        if heads.stick and bool((rows.start >= 0).all()):
            break
        s, _, a = _logits(heads, q, of_gates, tile)
        heads.mask(tile, s, s if heads.hidden_gates else a)
        work(s, a, rows, tile, heads)
        rows.out.baddbmm_(s.mT, heads.v[:, tile.keys])
    if heads.stick:
        rows.total.fill_(1.0)
        rows.m.zero_()
        if heads.remainder:
            _, v = _own_values(heads, i0, i1)
            rows.out += rows.count.neg().exp().to(v.dtype)[..., None] * v
    inverse = finish(rows)
    return Saved(rows.out, rows.m, inverse, rows.count, rows.start.clamp_(min=0))


def backward(
    dout: Tensor, saved: Saved, inputs: CopeInputs, of_bias: bool = False
) -> dict[str, Tensor]:
    """Gradients by name; those of the bias' vectors only ``of_bias``."""
    call = compiled(inputs, of_bias)
    if call:
        return call.backward(dout, *saved)
    heads = sorted_heads(inputs, of_bias)
    kept = [t.contiguous().view(*heads.q.shape[:3], *t.shape[3:]) for t in (dout, *saved)]
    grads = {"q": torch.empty_like(heads.q)}
    if heads.e is not None:
        grads["pos_emb"] = torch.zeros_like(heads.e)
    for name, t in (("r", heads.r), ("k", heads.k), ("v", heads.v), ("gate_k", heads.gate_k)):
        if t is not None:
            grads[name] = torch.empty_like(t)
    if heads.head_mix is not None:
        grads["head_mix"] = torch.zeros_like(heads.head_mix)
    for key_heads, part in heads.parts():
        dout, *its = (t[key_heads] for t in kept)
        sums: dict[str, KeySums] = {}
        sums |= {name: KeySums(part) for name in ("k", "v", "gate_k") if name in grads}
        for i0, i1, tiles in part.query_tiles():
            given = part, dout, Saved(*its), sums, grads, i0, i1, tiles
            for name, gradient in _backward_rows(*given).items():
                place = grads[name][key_heads, :, i0:i1]
                place.copy_(gradient.view(place.shape))
        for name, of_keys in sums.items():
            of_keys.move_to(grads[name][key_heads])
    if heads.e is not None:
        grads["pos_emb"] = grads["pos_emb"][..., :-SPARE, :].contiguous()
    found = {name: grad.view(getattr(inputs, name).shape) for name, grad in grads.items()}
    found |= {name: to_heads_last(found[name]) for name in HEADS if name in found}
    return found if heads.bias is None else found | heads.bias.gradients()


def _backward_rows(
    heads: CopeHeads, dout: Tensor, saved: Saved, sums: dict[str, KeySums],
    grads: dict[str, Tensor], i0: int, i1: int, tiles: list[Tile],
) -> dict[str, Tensor]:  # fmt: skip
    """One tile of queries against all the keys it sees, from the start to the diagonal.

    Args:
        dout: of all queries, (u r i dv).
        saved: of all queries, (u r i …).
        sums: gradients of what keys have, which are added to.
        grads: gradients of the table and of the heads' mixing, which are added to.

    Returns:
        Their dq, (u R d), and dr, (u R c), by name.
    """
    q, dout = rows_of(heads.q, i0, i1), rows_of(dout, i0, i1)
    r = q if heads.r is None else rows_of(heads.r, i0, i1)
    count = rows_of(saved.counted, i0, i1)
    L, e, last = _table_logits(heads, r, 0 if heads.e is None else int(count.max()) + 2)
    rows = BackwardRows(
        L=L,
        dL=heads.buffer("dL", *L.shape).zero_(),
        last=last,
        m=rows_of(saved.m, i0, i1),
        inverse=rows_of(saved.inverse, i0, i1),
        D=(dout * rows_of(saved.out, i0, i1)).sum(-1),
        count=count,
        lift=q.new_zeros(count.shape),
        start=rows_of(saved.start, i0, i1),
    )
    left = _enter_stick(heads, rows, dout, i0, i1) if heads.stick else None
    scaled, dq = q * heads.scale, torch.zeros_like(q)
    of_gates, dr = r * heads.gate_scale, torch.zeros_like(r)
    work = eager.backward if heads.e is not None else decay.backward
    for tile in tiles:
        if heads.stick and bool((rows.start >= tile.j1).all()):
            continue
        s, raw, a = _logits(heads, scaled, of_gates, tile)
        if raw is s and a is not s:
            raw = raw.clone()  # what is written into s is not for the mixing's gradient
        heads.mask(tile, s, s if heads.hidden_gates else a)
        dp = heads.product("dp", heads.v[:, tile.keys], dout)
        work(s, dp, a, rows, tile, heads)
        sums["v"].add(tile, s, dout)
        if a is not s:
            if heads.head_mix is not None:
                da_of, raw_of = (x.view(-1, heads.heads, *x.shape[1:]) for x in (a, raw))
                grads["head_mix"] += torch.einsum("bgkr,bhkr->gh", da_of, raw_of)
                a = _across_heads(heads.head_mix.mT, a)
            if heads.gate_k is None:
                dp += a
            else:
                sums["gate_k"].add(tile, a, of_gates)
                dr.baddbmm_(a.mT, heads.gate_k[:, tile.keys])
        if heads.bias is not None:
            heads.bias.accumulate(heads.by_head(dp), tile)
        sums["k"].add(tile, dp, scaled)
        dq.baddbmm_(dp.mT, heads.k[:, tile.keys])
    if left is not None:
        _add_to_own(sums["v"], *left)
    dq.mul_(heads.scale)
    dr.mul_(heads.gate_scale)
    if e is not None:
        de = grads["pos_emb"][..., : e.shape[-2], :]
        _through_table(heads, rows.dL, e, r, dr, de)
    return {"q": dq.add_(dr)} if heads.r is None else {"q": dq, "r": dr}


def _through_table(
    heads: CopeHeads, dL: Tensor, e: Tensor, r: Tensor, dr: Tensor, de: Tensor
) -> None:  # fmt: skip
    """Add what the table's logits give to the gradients of r and of the table."""
    if e.ndim == 2:
        dr.add_(dL @ e)
        de.addmm_(dL.flatten(0, 1).mT, r.flatten(0, 1))
    else:
        dL = heads.rows_by_head(dL)
        dr.add_((dL @ e).view(dr.shape))
        de.add_((dL.mT @ heads.rows_by_head(r)).sum(0))


def _table_logits(
    heads: CopeHeads, r: Tensor, reached: int
) -> tuple[Tensor, Tensor | None, int]:  # fmt: skip
    """L = r eᵀ (u R p+…), the rows of the table in it, and the largest position, P − 1.

    Nothing where there is no table. Only ``reached`` positions are needed. At least one row is
    added, and as many as it takes to make a row of L an odd number of cache lines: else the logits
    of all queries at one position lie in one cache set.
    """
    if heads.e is None:
        return r.new_empty(*r.shape[:2], 0), None, -1
    positions = min(reached, heads.max_pos)
    lines = -(-(positions + 1) // 16) // 2 * 2 + 1
    e = heads.e[..., : 16 * lines, :]
    L = heads.buffer("L", *r.shape[:2], e.shape[-2])
    if e.ndim == 2:
        torch.mm(r.flatten(0, 1), e.mT, out=L.flatten(0, 1))
    else:
        torch.matmul(heads.rows_by_head(r), e.mT, out=heads.rows_by_head(L))
    return L, e, positions - 1


def _own_values(heads: CopeHeads, i0: int, i1: int) -> tuple[Tensor, Tensor]:
    """The queries' own keys, int64 (u R), −1 where there is none or it is hidden; their values,
    (u R dv), 0 there."""
    (u, r, i, _), j = heads.q.shape, heads.k.shape[1]
    own = torch.arange(i0, i1, device=heads.q.device) + j - i
    own = own.clamp(min=-1).expand(u, r, -1)
    if heads.hidden is not None:
        hidden = heads.hidden[..., i0:i1, :].expand(*heads.hidden.shape[:3], i1 - i0, j)
        its = hidden.flatten(0, 1).gather(-1, own.clamp(min=0)[..., None])[..., 0]
        own = own.masked_fill(its, -1)
    own = own.flatten(1, 2)
    index = own.clamp(min=0)[..., None].expand(-1, -1, heads.v.shape[-1])
    return own, heads.v.gather(1, index).masked_fill(own[..., None] < 0, 0.0)


def _enter_stick(
    heads: CopeHeads, rows: BackwardRows, dout: Tensor, i0: int, i1: int
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Set D; the queries' own keys and the gradients of their values, where these get the rest."""
    rows.D.zero_()
    if not heads.remainder:
        return None
    own, v = _own_values(heads, i0, i1)
    rows.D += (dout * v).sum(-1)
    return own, rows.count.neg().exp().to(v.dtype)[..., None] * dout


def _add_to_own(sums: KeySums, own: Tensor, x: Tensor) -> None:
    """Add x (u R dv) to the sums of the queries' own keys, (u R)."""
    for j0, its in sums.sums.items():
        inside = (own >= j0) & (own < j0 + its.shape[1])
        if inside.any():
            index = (own - j0).clamp(0, its.shape[1] - 1)[..., None].expand_as(x)
            its.scatter_add_(1, index, x.masked_fill(~inside[..., None], 0.0))


def _logits(
    heads: CopeHeads, q: Tensor, r: Tensor, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of a tile, (u K R): the biased logits, and those of the gates; of scaled q and r.

    Returns:
        scale · q·k + bias; what the gates are made of before heads are mixed, and after. These are
        the same tensor as far as they are the same numbers.
    """
    s = heads.product("s", heads.k[:, tile.keys], q)
    if heads.bias is not None:
        heads.bias.add(heads.by_head(s), tile)
    raw = a = s
    if heads.gate_k is not None:
        raw = a = heads.product("gates", heads.gate_k[:, tile.keys], r)
    if heads.head_mix is not None:
        a = heads.buffer("mixed", raw.numel()).as_strided(raw.shape, raw.stride())
        a.copy_(_across_heads(heads.head_mix, raw))
    return s, raw, a


def _across_heads(head_mix: Tensor, a: Tensor) -> Tensor:
    """A tile of the gates' logits with its heads mixed."""
    by_head = a.view(-1, len(head_mix), *a.shape[1:])
    return torch.einsum("gh,bhkr->bgkr", head_mix, by_head).flatten(0, 1)
