"""Attention of a few queries with an index bias, without gradients: decoding with a cache.

The bias of a few queries is small enough to be written out: (h i j).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.reference import dense
from xcope.ops.inputs import visible


def biased_attention_few(inputs: BiasedInputs) -> Tensor:
    """(b h i dv); tensors are float32 or float64, the mask has 4 dimensions.

    Not finite in rows that meet a number that is not, and maybe in others.
    """
    q, k, mask = inputs.q, inputs.k, inputs.mask
    i, j = q.shape[2], k.shape[2]
    added = None if inputs.bias is None else dense(inputs.bias, j)
    if added is not None and added.ndim == 3:
        added = added[None]
    seen = None
    if mask is not None or (inputs.causal and i > 1):
        seen = visible(q, k, mask, inputs.causal)
        added = seen if added is None else added.masked_fill(~seen, -torch.inf)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, inputs.v, attn_mask=added, scale=inputs.scale, enable_gqa=grouped
    )
    if seen is not None:
        out = out.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return out
