"""Attention of a few queries with an index bias, without gradients: decoding with a cache.

The bias of a few queries is small enough to be written out: (h i j).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.reference import dense
from xcope.ops.biased.terms import Terms
from xcope.ops.inputs import visible


def biased_attention_few(
    q: Tensor, k: Tensor, v: Tensor, bias: Terms | None, mask: Tensor | None,
    scale: float, causal: bool,
) -> Tensor:  # fmt: skip
    """Arguments as of `xcope.ops.biased.biased_attention`, the mask of 4 dimensions; (b h i dv).

    Not finite in rows that meet a number that is not, and maybe in others.
    """
    i, j = q.shape[2], k.shape[2]
    added = None if bias is None else dense(bias, j)
    if added is not None and added.ndim == 3:
        added = added[None]
    seen = None
    if mask is not None or (causal and i > 1):
        seen = visible(q, k, mask, causal)
        added = seen if added is None else added.masked_fill(~seen, -torch.inf)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=added, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    if seen is not None:
        out = out.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return out
