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
"""

from __future__ import annotations

import torch
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
        q: queries, unscaled, (b h i d).
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


def cope_attention_reference(inputs: CopeInputs) -> Tensor:
    """The definition on whole tensors: (b h i dv), dtype of q.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.
    """
    dtype, inputs = inputs.q.dtype, inputs.widened().with_all_heads()
    q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.mask
    gate_k, head_mix = inputs.gate_k, inputs.head_mix
    if inputs.cu_seqlens is not None:
        mask = within_documents(mask, inputs.cu_seqlens, k.shape[2])
    mask = masked_within(mask, inputs.window, k.shape[2])
    seen = visible(q, k, mask, inputs.causal)
    # where heads are mixed, one head's gate needs the logits of all of them
    needed = seen if head_mix is None else seen.any(1, keepdim=True)
    s = inputs.scale * scores(q, k, needed)
    if inputs.bias is not None:
        s = s + dense(inputs.bias, k.shape[2])
    gate_logits = s if gate_k is None else inputs.scale * scores(q, gate_k, needed)
    if head_mix is not None:
        gate_logits = gate_logits.masked_fill(~needed, 0.0)
        gate_logits = torch.einsum("gh,bhij->bgij", head_mix, gate_logits)
    s = s + position_bias(
        q,
        gate_logits,
        inputs.pos_emb,
        seen,
        soft_onehot=inputs.soft_onehot,
        soft_onehot_temp=inputs.soft_onehot_temp,
    )
    # A row that sees no key gives zeros: an all −∞ softmax would give NaN.
    attn = with_column(s.masked_fill(~seen, -torch.inf), inputs.sink)
    attn = attn.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weighted_sums(attn, v, seen).to(dtype)
