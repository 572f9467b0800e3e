"""Attention with an index bias by its definition: readable, (b h i j) memory.

    out_i = Σ_j softmax_j(scale · q_i·k_j + b_ij) v_j

where b_ij is one of the forms of `xcope.ops.terms`, and j are the keys that i sees: what it
does not see need not be finite. A sink is one more logit in the softmax (`xcope.ops.sinks`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.documents import within_documents
from xcope.ops.inputs import visible
from xcope.ops.nonfinite import scores, weighted_sums
from xcope.ops.sinks import with_column
from xcope.ops.terms import ByDistance, Piecewise, Separable, Terms, cast_to, placed
from xcope.ops.windows import masked_within


def distances(terms: ByDistance | Piecewise) -> Tensor:
    """δ_ij, clamped to the table: int64, (i j) or (b i j)."""
    table = terms.table if isinstance(terms, ByDistance) else terms.warp
    apart = terms.q_pos[..., :, None] - terms.k_pos[..., None, :]
    return apart.clamp(0, table.shape[-1] - 1)


def of_heads(vectors: Tensor, index: Tensor) -> Tensor:
    """Entries of (h n) at (i j) or (b i j): (h i j) or (b h i j)."""
    chosen = vectors[:, index]
    return chosen if index.ndim == 2 else chosen.transpose(0, 1)


def curve(terms: Piecewise, delta: Tensor) -> tuple[Tensor, Tensor]:
    """t_ij = warp[δ_ij] · shrink_i and the segment that it lies in, (i j) or (b i j)."""
    t = terms.warp[delta] * terms.shrink[..., None]
    return t, torch.searchsorted(terms.knots, t, right=True)


def dense(terms: Terms, keys: int | None = None) -> Tensor:
    """The bias written out.

    Args:
        terms: one of the forms.
        keys: j; those before the keys that have a place get 0. None: all have one.

    Returns:
        (h i j) or (b h i j), dtype of the vectors.
    """
    if isinstance(terms, Separable):
        bias = terms.row[..., :, None] - terms.key[..., None, :]
    elif isinstance(terms, ByDistance):
        bias = of_heads(terms.table, distances(terms))
    else:
        t, segment = curve(terms, distances(terms))
        by_head = t if t.ndim == 2 else t[:, None]
        bias = of_heads(terms.slope, segment) * by_head + of_heads(terms.offset, segment)
    free = 0 if keys is None else keys - placed(terms)
    return F.pad(bias, (free, 0)) if free else bias


def biased_attention_reference(
    inputs: BiasedInputs, added: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """The definition on whole tensors: (b h i dv), dtype of q.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.

    Args:
        inputs: of the attention.
        added: what else is added to the logits and reads them: takes q (b h i d), the logits
            (b h i j) with the bias, and which keys are seen; gives (b h i j).
    """
    dtype, mask = inputs.q.dtype, inputs.mask
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (t.to(wide) for t in (inputs.q, inputs.k, inputs.v))
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    if inputs.cu_seqlens is not None:
        mask = within_documents(mask, inputs.cu_seqlens, k.shape[2])
    mask = masked_within(mask, inputs.window, k.shape[2])
    seen = visible(q, k, mask, inputs.causal)
    s = inputs.scale * scores(q, k, seen)
    if inputs.bias is not None:
        s = s + dense(cast_to(inputs.bias, q), k.shape[2])
    if added is not None:
        s = s + added(q, s, seen)
    # A row that sees no key gives zeros: an all −∞ softmax would give NaN.
    attn = with_column(s.masked_fill(~seen, -torch.inf), inputs.sink)
    attn = attn.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weighted_sums(attn, v, seen).to(dtype)


def definition(inputs: BiasedInputs, *tensors: Tensor) -> Tensor:
    """The reference as a function of the tensors in `BiasedInputs.named`, in their order."""
    given = dict(zip(inputs.named(), tensors, strict=True))
    return biased_attention_reference(inputs.with_named(given))
