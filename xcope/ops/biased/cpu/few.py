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
from xcope.ops.sinks import with_column
from xcope.ops.windows import masked_within


def biased_attention_few(inputs: BiasedInputs) -> Tensor:
    """(b h i dv); tensors are float32 or float64, the mask has 4 dimensions.

    Not finite in rows that meet a number that is not, and maybe in others.
    """
    q, k = inputs.q, inputs.k
    i, j = q.shape[2], k.shape[2]
    added = None if inputs.bias is None else dense(inputs.bias, j)
    if added is not None and added.ndim == 3:
        added = added[None]
    seen, mask = None, masked_within(inputs.mask, inputs.window, j)
    if mask is not None or (inputs.causal and i > 1):
        seen = visible(q, k, mask, inputs.causal)
    if inputs.sink is not None:
        out = _beside_a_sink(inputs, added, seen)
    else:
        if seen is not None:
            added = seen if added is None else added.masked_fill(~seen, -torch.inf)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            q, k, inputs.v, attn_mask=added, scale=inputs.scale, enable_gqa=grouped
        )
    if seen is not None:
        out = out.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return out


def _beside_a_sink(inputs: BiasedInputs, added: Tensor | None, seen: Tensor | None) -> Tensor:
    """PyTorch's attention takes one more logit only with a key."""
    (b, h, i, d), (hk, j) = inputs.q.shape, inputs.k.shape[1:3]
    q = (inputs.q * inputs.scale).reshape(b, hk, h // hk * i, d)
    s = (q @ inputs.k.mT).view(b, h, i, j)
    s = s if added is None else s + added
    s = s if seen is None else s.masked_fill(~seen, -torch.inf)
    weights = with_column(s, inputs.sink).reshape(b, hk, h // hk * i, j)
    return (weights @ inputs.v).view(b, h, i, inputs.v.shape[-1])
