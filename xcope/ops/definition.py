"""Attention by its definition: readable, (b h i j) memory.

    out_i = Σ_j softmax_j(s_ij + b_ij + a_ij) v_j,  s_ij = scale · q_i·k_j

over the keys j that query i sees, b_ij an index bias, a_ij what a scheme adds that reads the
logits. What a query does not see need not be finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xcope.ops.biased.reference import dense
from xcope.ops.biased.terms import Terms, cast_to
from xcope.ops.documents import within_documents
from xcope.ops.inputs import visible
from xcope.ops.nonfinite import scores, weighted_sums


def attention_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Terms | None,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    added: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The definition on whole tensors; float16 and bfloat16 in float32, rounded once, at the end.

    Args:
        q: (b h i d).
        k: (b hk j d); query head ``a`` uses key head ``a // (h / hk)``.
        v: (b hk j dv).
        bias: of the logits, or None.
        scale: of the logits.
        mask: bool, True where a key may be attended: (b j), or broadcasts to (b h i j).
        causal: query i sees keys up to its own place.
        cu_seqlens: where each of several documents in one row begins.
        added: takes q, s + b and which keys are seen, gives a (b h i j).

    Returns:
        (b h i dv), dtype of ``q``; zeros where a row sees no key.
    """
    dtype = q.dtype
    q, k, v = (t.to(torch.promote_types(dtype, torch.float32)) for t in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    if cu_seqlens is not None:
        mask = within_documents(mask, cu_seqlens, k.shape[2])
    seen = visible(q, k, mask, causal)
    s = scale * scores(q, k, seen)
    if bias is not None:
        s = s + dense(cast_to(bias, q), k.shape[2])
    if added is not None:
        s = s + added(q, s, seen)
    # a row that sees no key gives zeros: an all −∞ softmax would give NaN
    weights = s.masked_fill(~seen, -torch.inf).softmax(-1)
    weights = weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weighted_sums(weights, v, seen).to(dtype)
