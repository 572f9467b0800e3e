"""CoPE attention and its kin of a few queries, without gradients: decoding with a key/value cache.

Whole rows at once, (h i j) memory. Counting starts at the end of the row with a window that grows
until all rows are saturated: keys left of it share the last position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcope.ops.biased.reference import dense
from xcope.ops.cope.cpu.eager import Interpolation
from xcope.ops.cope.inputs import CopeInputs
from xcope.ops.cope.reference import decays_of, log_shares
from xcope.ops.inputs import visible
from xcope.ops.sinks import with_column
from xcope.ops.windows import masked_within


def cope_attention_few(inputs: CopeInputs) -> Tensor:
    """(b h i dv), of float32 or float64.

    Not finite in rows that meet a number that is not, and maybe in others.
    """
    q, k, v, head_mix, kind = inputs.q, inputs.k, inputs.v, inputs.head_mix, inputs.recurrence
    r = q if inputs.r is None else inputs.r
    b, h, i, d = q.shape
    hk, j = k.shape[1:3]
    seen = None
    mask = masked_within(inputs.mask, inputs.window, j)
    if mask is not None or (inputs.causal and i > 1):
        seen = visible(q, k, mask, inputs.causal).expand(b, h, i, j)

    scaled = (q * inputs.scale).reshape(b, hk, h // hk * i, d)
    s = (scaled @ k.mT).view(b, h, i, j)
    if inputs.bias is not None:
        s = s + dense(inputs.bias, j)
    a = s
    if inputs.gate_k is not None:
        grouped = (r * abs(inputs.gate_scale)).reshape(b, hk, h // hk * i, r.shape[-1])
        a = (grouped @ inputs.gate_k.mT).view(b, h, i, j)
    elif kind == "distance":
        a = torch.full_like(s, torch.inf)
    if kind in ("decay", "stick"):
        return _decayed(inputs, s, a, seen)
    if head_mix is not None:
        a = torch.einsum("gh,bhij->bgij", head_mix, a)
    if seen is not None:
        s, a = (x.masked_fill(~seen, -torch.inf) for x in (s, a))
    L = r @ inputs.table.mT
    if inputs.soft_onehot:  # all positions are weighed, if next to nothing
        s = s + 0 * L.sum(-1, keepdim=True)
    prob = with_column(_biased(s, a, L, inputs.sharpness), inputs.sink)
    if seen is not None:
        prob = prob.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return (prob.reshape(b, hk, h // hk * i, j) @ v).view(b, h, i, v.shape[-1])


def _decayed(inputs: CopeInputs, s: Tensor, a: Tensor, seen: Tensor | None) -> Tensor:
    """Of decays and sticks; summed up in float64."""
    v = inputs.v
    seen = torch.ones_like(s, dtype=torch.bool) if seen is None else seen
    if inputs.recurrence == "stick":
        prob = log_shares(s.double(), seen, own=inputs.own, remainder=inputs.remainder).exp()
        prob = prob.to(s.dtype)
    else:
        s = s + decays_of(inputs, a.double(), seen).to(s.dtype)
        prob = with_column(s.masked_fill(~seen, -torch.inf), inputs.sink)
        prob = prob.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    hk = v.shape[1]
    grouped = prob.reshape(prob.shape[0], hk, -1, prob.shape[-1])
    return (grouped @ v).view(*prob.shape[:3], v.shape[-1])


def _biased(s: Tensor, a: Tensor, L: Tensor, sharpness: float) -> Tensor:
    """s + b, in the memory of s."""
    j, last = s.shape[-1], L.shape[-1] - 1
    L = torch.cat([L, L[..., -1:]], dim=-1)
    window = 4 * L.shape[-1]
    while True:
        start = max(0, j - window)
        p = a[..., start:].sigmoid().flip(-1).cumsum(-1).flip(-1)
        if start == 0 or bool((p[..., 0] >= last).all()):
            break
        window *= 4
    bias = Interpolation(L, last, p, sharpness).bias()
    s[..., :start] += L[..., last, None]
    if a is not s:  # a count that is not a number to the left of it is none
        s[..., :start].masked_fill_(a[..., :start].isnan(), torch.nan)
    s[..., start:] += bias
    return s
