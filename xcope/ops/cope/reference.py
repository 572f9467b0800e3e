"""CoPE attention by its definition: readable, (b h i j) memory, the truth for every fast path.

Golovneva, Wang, Weston, Sukhbaatar, *Contextual Position Encoding: Learning to Count What's
Important*, arXiv 2405.18719. For one head, keys j visible to query i:

    s_ij = scale · q_i·k_j                     logits
    g_ij = sigmoid(s_ij)                       gates, 0 where masked
    p_ij = min(Σ_{t=j..i} g_it, P − 1)         positions, counted from the query back to the key
    L_i  = e q_i                               table logits (P,), with q unscaled
    b_ij = (1 − w) L_i[f] + w L_i[c]           f = ⌊p⌋, c = min(f + 1, P − 1), w = p − f
    out  = softmax_j(s_ij + b_ij) v_j

A bias of the logits (ALiBi's, say), where there is one, is part of s_ij. Keys of other documents,
and those outside of a window, are masked: they do not count. A sink is one more logit in the
softmax. Sums are over visible keys only: where these are finite, so is the
row, whatever the others are.

Its kin (`CopeInputs.recurrence`) sum up something else from the query back to the key. r_i is q_i
where it is not given; x_ij = r_i·k'_j, or scale · q_i·k'_j, of the gates' keys k':

    distance   g_ij = 1, so that p_ij is how many visible keys there are from j on; L_i = e r_i
    decay      out = softmax_j(s_ij + rate · Σ_t log sigmoid(x_it)) v_j, t = j … before i, or, with
               ``own``, after j … i; keys after the query have no gates
    stick      out = Σ_j A_ij v_j, A_ij = sigmoid(s_ij) Π_t (1 − sigmoid(s_it)), t after j … before
               i, or, with ``own``, … i; with ``remainder`` A_ii is what the others leave, or is
               larger by that
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.reference import dense
from xcope.ops.cope.inputs import CopeInputs
from xcope.ops.documents import within_documents
from xcope.ops.inputs import visible
from xcope.ops.nonfinite import scores, weighted_sums
from xcope.ops.sinks import with_column
from xcope.ops.windows import masked_within


def positions(gates: Tensor, max_pos: int) -> Tensor:
    """Contextual positions p_ij = min(Σ_{t ≥ j} g_it, max_pos − 1); (b h i j), fractional."""
    return gates.flip(-1).cumsum(-1).flip(-1).clamp(max=max_pos - 1)


def interpolated(table_logits: Tensor, pos: Tensor) -> Tensor:
    """Bias at fractional positions, between the two nearest integers.

    Args:
        table_logits: L, (b h i p).
        pos: positions in [0, p − 1], (b h i j), or NaN.
    """
    f, c = nearest(pos, table_logits.shape[-1])
    w = pos - pos.floor()
    return (1 - w) * table_logits.gather(-1, f) + w * table_logits.gather(-1, c)


def nearest(pos: Tensor, max_pos: int) -> tuple[Tensor, Tensor]:
    """The integers f and c around positions; any, where they are NaN."""
    f = pos.floor().nan_to_num().long()
    return f, (f + 1).clamp(max=max_pos - 1)


def soft_one_hot(table_logits: Tensor, pos: Tensor, temp: float) -> Tensor:
    """Bias from weights softmax_m(−|p_ij − m| / temp) over all P integers m.

    Needs (b h i j p) memory. Shapes as in `interpolated`.
    """
    integers = torch.arange(table_logits.shape[-1], device=pos.device, dtype=pos.dtype)
    weights = (-(pos[..., None] - integers).abs() / temp).softmax(-1)
    return torch.einsum("bhijp,bhip->bhij", weights, table_logits)


def _read(pos: Tensor, seen: Tensor, max_pos: int) -> Tensor:
    """Which table logits a query reads, of its visible keys' positions: bool, (b h i p)."""
    nothing = pos.new_zeros(*pos.shape[:-1], max_pos + 1, dtype=torch.bool)
    for integer in nearest(pos, max_pos):
        nothing = nothing.scatter(-1, integer.masked_fill(~seen, max_pos), True)
    return nothing[..., :max_pos]


def position_bias(
    q: Tensor,
    gate_logits: Tensor,
    pos_emb: Tensor,
    seen: Tensor,
    *,
    soft_onehot: bool = False,
    soft_onehot_temp: float = 0.05,
) -> Tensor:
    """b_ij of the definition above, from the logits that are turned into gates.

    Args:
        q: queries, unscaled, (b h i d), or what reads the table in their place.
        gate_logits: what the sigmoid is taken of, (b h i j); x-transformers and the paper use
            the attention logits s_ij.
        pos_emb: the table e, (p d) or (h p d).
        seen: bool, broadcasts to (b h i j); gates are 0 elsewhere.
        soft_onehot: weigh all integers instead of the two nearest ones.
        soft_onehot_temp: temperature of these weights.

    Returns:
        (b h i j), dtype of ``gate_logits``.
    """
    max_pos = pos_emb.shape[-2]
    gates = gate_logits.masked_fill(~seen, -torch.inf).sigmoid()
    pos = positions(gates, max_pos)
    read = seen.new_ones(max_pos) if soft_onehot else _read(pos, seen, max_pos)
    q, e = q.to(gate_logits.dtype), pos_emb.to(gate_logits.dtype)
    table_logits = scores(q, e.expand(*q.shape[:2], *e.shape[-2:]), read)
    if soft_onehot:
        return soft_one_hot(table_logits, pos, soft_onehot_temp)
    return interpolated(table_logits, pos)


def own_keys(s: Tensor) -> Tensor:
    """Which key is the query's own, of logits (… i j): bool (i j)."""
    i, j = s.shape[-2:]
    return torch.ones(i, j, dtype=torch.bool, device=s.device).tril(j - i).triu(j - i)


def decays(
    gate_logits: Tensor, gated: Tensor | None = None, *, rate: float = 1.0, own: bool = False
) -> Tensor:
    """What is added to the logits, (b h i j): the sum of log gates above.

    Args:
        gate_logits: x, (b h i j).
        gated: bool, broadcasts to (b h i j): which keys have a gate; None: all.
        rate: multiplies the log gates.
        own: the query's own gate counts, and the key's does not.
    """
    i, j = gate_logits.shape[-2:]
    before = torch.ones(i, j, dtype=torch.bool, device=gate_logits.device)
    before = before.tril(j - i if own else j - i - 1)
    gated = before if gated is None else before & gated
    gate_logits = gate_logits.masked_fill(~gated, 0.0)
    log_gates = rate * F.logsigmoid(gate_logits).masked_fill(~gated, 0.0)
    sums = log_gates.flip(-1).cumsum(-1).flip(-1)
    return sums - log_gates if own else sums


def decays_of(inputs: CopeInputs, gate_logits: Tensor, seen: Tensor) -> Tensor:
    """`decays` as the options say, (b h i j); 0 for keys that come before the first gate."""
    bare = inputs.bare
    if inputs.hidden_gates:
        edges, seen = inputs.cu_seqlens, torch.ones_like(seen)
        seen = seen if edges is None else within_documents(seen, edges, inputs.k.shape[2])
    x = gate_logits[..., bare:]
    added = decays(x, seen[..., bare:], rate=inputs.rate, own=inputs.own)
    return F.pad(added, (bare, 0))


def log_shares(s: Tensor, seen: Tensor, *, own: bool = False, remainder: bool = False) -> Tensor:
    """log A_ij, (b h i j), of sticks; −∞ where a key gets nothing.

    Args:
        s: logits, (b h i j).
        seen: bool, broadcasts to (b h i j).
        own: the query's own key breaks its share off.
        remainder: what is left goes to the query's own value.
    """
    diagonal = own_keys(s)
    breaks = seen if own else seen & ~diagonal
    s = s.masked_fill(~breaks, 0.0)
    leaves = F.logsigmoid(-s).masked_fill(~breaks, 0.0)
    left = leaves.flip(-1).cumsum(-1).flip(-1)  # when the key has broken its share off
    shares = (F.logsigmoid(s) + left - leaves).masked_fill(~breaks, -torch.inf)
    if not remainder:
        return shares
    rest = left[..., :1].expand_as(s)
    rest = torch.logaddexp(shares, rest) if own else rest
    return torch.where(seen & diagonal, rest, shares)


def cope_attention_reference(inputs: CopeInputs) -> Tensor:
    """The definition on whole tensors: (b h i dv), dtype of q.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.
    """
    dtype, inputs = inputs.q.dtype, inputs.widened().with_all_heads()
    q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.mask
    gate_k, head_mix, kind = inputs.gate_k, inputs.head_mix, inputs.recurrence
    r = q if inputs.r is None else inputs.r
    if inputs.cu_seqlens is not None:
        mask = within_documents(mask, inputs.cu_seqlens, k.shape[2])
    mask = masked_within(mask, inputs.window, k.shape[2])
    seen = visible(q, k, mask, inputs.causal)
    # where heads are mixed, one head's gate needs the logits of all of them
    needed = seen if head_mix is None else seen.any(1, keepdim=True)
    s = inputs.scale * scores(q, k, needed)
    if inputs.bias is not None:
        s = s + dense(inputs.bias, k.shape[2])
    gate_logits, scale = s, inputs.scale if inputs.r is None else 1.0
    if gate_k is not None:
        if inputs.hidden_gates:
            needed = torch.ones_like(needed)
        gate_logits = scale * scores(r, gate_k, needed)
    if head_mix is not None:
        gate_logits = gate_logits.masked_fill(~needed, 0.0)
        gate_logits = torch.einsum("gh,bhij->bgij", head_mix, gate_logits)
    if kind == "stick":
        attn = log_shares(s, seen, own=inputs.own, remainder=inputs.remainder).exp()
        if not (inputs.own or inputs.remainder):
            seen = seen & ~own_keys(s)
        return weighted_sums(attn, v, seen).to(dtype)
    if kind == "decay":
        s = s + decays_of(inputs, gate_logits, seen)
    elif inputs.pos_emb is not None:
        s = s + position_bias(
            r,
            torch.full_like(s, torch.inf) if kind == "distance" else gate_logits,
            inputs.pos_emb,
            seen,
            soft_onehot=inputs.soft_onehot,
            soft_onehot_temp=inputs.soft_onehot_temp,
        )
    # A row that sees no key gives zeros: an all −∞ softmax would give NaN.
    attn = with_column(s.masked_fill(~seen, -torch.inf), inputs.sink)
    attn = attn.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weighted_sums(attn, v, seen).to(dtype)
