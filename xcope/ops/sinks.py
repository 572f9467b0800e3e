"""Sinks: a logit of each head that takes its share of the softmax and leaves no value.

    out_i ← out_i · σ(lse_i − sink_h),  lse_i = log Σ_j exp(y_ij)

as if one more key had this logit and a value of 0; a sink of 0 is softmax plus one. What attention
in tiles keeps for its backward, m and 1 / Σ exp(y − m), follows from the same sum with one more
term in it. So the backward is the same as without a sink, and the sink's own gradient is

    dsink_h = −Σ_i exp(sink_h − m_i) / Σ · D_i,  D_i = dout_i·out_i

Xiao et al., arXiv 2309.17453 (softmax plus one); OpenAI, gpt-oss (learned for each head).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.inputs import number, require_device, shape


def check_sink(sink: Tensor, q: Tensor) -> None:
    """Raise a `FlagError` unless the sinks are a number for each head of q (b h i d)."""
    if not sink.is_floating_point():
        raise FlagError("sink", f"sink must be floating point, but is {sink.dtype}")
    if sink.shape != q.shape[1:2]:
        raise FlagError("sink", f"sink {shape(sink)} must be ({number(q.shape[1])}), one per head")
    require_device("sink", sink, q)


def sunk(saved: tuple[Tensor, ...], sink: Tensor | None) -> tuple[Tensor, ...]:
    """What tiles give without a sink, with it: out (b h i dv), m, 1 / Σ exp (b h i), and the rest.

    Rows whose 1 / Σ exp is NaN (`xcope.ops.nonfinite`) know of the sink already.
    """
    if sink is None:
        return tuple(saved)
    out, m, inverse, *others = saved
    logit, redone = sink[:, None], inverse.isnan()
    top = torch.maximum(m, logit)
    keys = torch.where(inverse > 0, (m - top).exp() / inverse, 0.0)
    total = keys + (logit - top).exp()
    share = torch.where(redone, 1.0, keys / total)
    return (
        out.mul_(share[..., None]),
        torch.where(redone, m, top),
        torch.where(redone, inverse, total.reciprocal()),
        *others,
    )


def gradient(dout: Tensor, saved: Sequence[Tensor], sink: Tensor) -> Tensor:
    """dsink (h), from what `sunk` gave."""
    out, m, inverse, *_ = saved
    weight = torch.where(inverse > 0, (sink[:, None] - m).exp() * inverse, 0.0)
    return -(weight * (dout * out).sum(-1)).sum((0, 2))


def with_column(s: Tensor, sink: Tensor | None) -> Tensor:
    """The softmax of logits (b h i j), −∞ where hidden, beside a sink, whose share is left out."""
    if sink is None:
        return s.softmax(-1)
    column = sink.to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
    return torch.cat((s, column), dim=-1).softmax(-1)[..., :-1]
