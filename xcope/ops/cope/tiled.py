"""CoPE attention tile by tile: exact, O(n (d + P)) memory, on CPUs and any other device.

The public function of this backend, and what it is behind `xcope.ops.cope.operator`. The algorithm
is in `xcope.ops.cope.walk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.biased.eager import Bias
from xcope.ops.biased.forms import cast_to, flatten, names, unflatten
from xcope.ops.biased.terms import Terms
from xcope.ops.cope import eager, few, walk
from xcope.ops.cope.operator import Saved, cope
from xcope.ops.cope.tiles import SPARE, Body, Call
from xcope.ops.documents import one_by_one
from xcope.ops.inputs import FEW, differentiated
from xcope.ops.tiles import by_key_head, compiled_or_none, sorted_by_key_head

# Of the soft one-hot: its two nearest integers alone are right to float32's precision, e^(−1/τ).
MAX_TEMPERATURE = 0.0625


def cope_attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Arguments as in `xcope.cope_attention`, already checked. Documents are computed one by one.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. A soft one-hot is
    the interpolation with sigmoid((2w − 1)/τ) in place of w: further integers weigh less than
    e^(−1/τ), so τ must be small.

    Raises:
        ValueError: a soft one-hot with a temperature above ``MAX_TEMPERATURE``; an MPS device.
    """
    if cu_seqlens is None:
        return _of_a_row(q, k, v, pos_emb, **options)
    return one_by_one(_of_a_row, q, k, v, pos_emb, cu_seqlens=cu_seqlens, **options)


def check_temperature(soft_onehot: bool, soft_onehot_temp: float) -> None:
    """Raise a `FlagError` where the two nearest integers are not all that matters."""
    if soft_onehot and soft_onehot_temp > MAX_TEMPERATURE:
        raise FlagError(
            "soft_onehot_temp",
            f"soft_onehot_temp={soft_onehot_temp} is above {MAX_TEMPERATURE}, where positions "
            "further than the nearest two begin to matter: use backend='reference'",
        )


def _of_a_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    soft_onehot: bool = False,
    soft_onehot_temp: float = 0.05,
    gate_k: Tensor | None = None,
    head_mix: Tensor | None = None,
    bias: Terms | None = None,
) -> Tensor:
    """Of one document, or rows of a batch."""
    check_temperature(soft_onehot, soft_onehot_temp)
    if q.device.type == "mps":
        raise FlagError(
            "backend",
            "backend='tiled' counts in float64, which MPS devices lack: use backend='reference'",
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    dtype, groups = q.dtype, q.shape[1] // k.shape[1]
    q, k, v, pos_emb = (t.to(wide) for t in (q, k, v, pos_emb))
    gate_k = None if gate_k is None else gate_k.to(wide)
    if head_mix is not None:
        head_mix = head_mix.to(wide)
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        gate_k = None if gate_k is None else gate_k.repeat_interleave(groups, dim=1)
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    sharpness = 1 / soft_onehot_temp if soft_onehot else 0.0
    form, vectors = flatten(None if bias is None else cast_to(bias, q))
    tensors = (q, k, v, pos_emb, gate_k, head_mix)
    if q.shape[2] <= FEW and not differentiated(*tensors, *vectors):
        terms = unflatten(form, vectors)
        return few.cope_attention_few(*tensors, mask, terms, scale, causal, sharpness).to(dtype)
    out, *_ = cope(*tensors, mask, None, vectors, form, scale, causal, sharpness, "tiled")
    return cast(Tensor, out).to(dtype)


def body_for(dtype: torch.dtype, device: torch.device) -> Body:
    """The fastest body there is: compiled for float32 on CPUs that numba knows, else eager."""
    if device.type == "cpu" and dtype == torch.float32:
        return compiled_body() or cast(Body, eager)
    return cast(Body, eager)


@cache
def compiled_body() -> Body | None:
    """The body compiled by numba, or None where it cannot be had; says so once."""
    return cast(Body | None, compiled_or_none("xcope.ops.cope.compiled", "CoPE"))


def _call(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
    sharpness: float, of_vectors: bool = False,
) -> Call:  # fmt: skip
    """Sorts the tensors by key head; ``of_vectors``: gradients of the bias are gathered."""
    size = (*q.shape[:3], k.shape[2])
    body, terms = body_for(q.dtype, q.device), unflatten(form, vectors)
    q, k, v, hidden = sorted_by_key_head(q, k, v, mask)
    return Call(
        q=q,
        k=k,
        v=v,
        hidden=hidden,
        e=F.pad(e, (0, 0, 0, SPARE)),
        max_pos=e.shape[-2],
        gate_k=None if gate_k is None else by_key_head(gate_k),
        head_mix=head_mix,
        bias=None if terms is None else Bias(terms, size, of_vectors),
        scale=scale,
        causal=causal,
        sharpness=sharpness,
        body=body,
        sizes=body,
        heads=size[1],
    )


def run(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
    scale: float, causal: bool, sharpness: float,
) -> Saved:  # fmt: skip
    """out (b h i dv), and for the backward m, 1 / Σ exp, count and start, (b h i).

    float32 or float64. Documents are run one by one, elsewhere.
    """
    b, h, i, _ = q.shape
    result = walk.forward(
        _call(q, k, v, e, gate_k, head_mix, mask, vectors, form, scale, causal, sharpness)
    )
    return (
        result.out.view(b, h, i, -1),
        result.m.view(b, h, i),
        result.inverse.view(b, h, i),
        result.count.view(b, h, i),
        result.start.view(b, h, i),
    )


def fake(q: Tensor, v: Tensor) -> Saved:
    """Of the shapes and dtypes that `run` gives."""
    b, h, i, _ = q.shape
    return (
        q.new_empty(b, h, i, v.shape[-1]),
        q.new_empty(b, h, i),
        q.new_empty(b, h, i),
        q.new_empty(b, h, i, dtype=torch.float64),
        q.new_empty(b, h, i, dtype=torch.int32),
    )


def run_backward(
    dout: Tensor, saved: Saved, q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None,
    head_mix: Tensor | None, mask: Tensor | None, documents: Tensor | None,
    vectors: Sequence[Tensor], form: str, scale: float, causal: bool, sharpness: float,
    of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """See `xcope.ops.cope.operator.cope_backward`."""
    call = _call(
        q, k, v, e, gate_k, head_mix, mask, vectors, form, scale, causal, sharpness, of_vectors
    )  # fmt: skip
    rows = call.q.shape[:3]
    out, *others = saved
    result = walk.Result(out.view(*rows, -1), *(t.view(rows) for t in others))
    grads = walk.backward(call, result, dout.contiguous().view(*rows, -1))
    found = {} if call.bias is None else call.bias.gradients()
    return [
        grads.q.view(q.shape),
        grads.k.view(k.shape),
        grads.v.view(v.shape),
        grads.e[..., :-SPARE, :].contiguous(),
        q.new_empty(0) if grads.gate_k is None else grads.gate_k.view(k.shape),
        q.new_empty(0) if grads.head_mix is None else grads.head_mix,
        *(found.get(name, q.new_empty(0)) for name in names(form)),
    ]
