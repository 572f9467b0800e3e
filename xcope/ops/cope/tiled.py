"""CoPE attention tile by tile: exact, O(n (d + P)) memory, on CPUs and any other device.

The public function of this backend and its PyTorch operator (`torch.ops.xcope.cope_tiled`), with
fake tensors and autograd registered. The algorithm is in `xcope.ops.cope.walk`.
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
from xcope.ops.biased.forms import (
    cast_to,
    flatten,
    like_gradients,
    names,
    unflatten,
    with_gradient,
)
from xcope.ops.biased.terms import Terms
from xcope.ops.cope import eager, few, walk
from xcope.ops.cope.tiles import SPARE, Body, Call
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
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    soft_onehot: bool = False,
    soft_onehot_temp: float = 0.05,
    gate_k: Tensor | None = None,
    head_mix: Tensor | None = None,
    bias: Terms | None = None,
) -> Tensor:
    """Arguments as in `xcope.cope_attention`, already checked.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. A soft one-hot is
    the interpolation with sigmoid((2w − 1)/τ) in place of w: further integers weigh less than
    e^(−1/τ), so τ must be small.

    Raises:
        ValueError: a soft one-hot with a temperature above ``MAX_TEMPERATURE``; an MPS device.
    """
    if soft_onehot and soft_onehot_temp > MAX_TEMPERATURE:
        raise FlagError(
            "soft_onehot_temp",
            f"soft_onehot_temp={soft_onehot_temp} is above {MAX_TEMPERATURE}, where positions "
            "further than the nearest two begin to matter: use backend='reference'",
        )
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
    out, *_ = cope_tiled(*tensors, mask, vectors, form, scale, causal, sharpness)
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


@torch.library.custom_op("xcope::cope_tiled", mutates_args=())
def cope_tiled(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
    sharpness: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out (b h i dv), and for the backward m, 1 / Σ exp, count and start, (b h i).

    float32 or float64; vectors and form of a bias as of `xcope.ops.biased.forms.flatten`.
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


@cope_tiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, h, i, _d = q.shape
    return (
        q.new_empty(b, h, i, v.shape[-1]),
        q.new_empty(b, h, i),
        q.new_empty(b, h, i),
        q.new_empty(b, h, i, dtype=torch.float64),
        q.new_empty(b, h, i, dtype=torch.int32),
    )


@torch.library.custom_op("xcope::cope_tiled_backward", mutates_args=())
def cope_tiled_backward(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor, count: Tensor, start: Tensor,
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
    sharpness: float, of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v, e, gate_k, head_mix, and ``of_vectors``; empty where there is none."""
    call = _call(
        q, k, v, e, gate_k, head_mix, mask, vectors, form, scale, causal, sharpness, of_vectors
    )  # fmt: skip
    rows = call.q.shape[:3]
    result = walk.Result(
        out.view(*rows, -1), m.view(rows), inverse.view(rows), count.view(rows), start.view(rows)
    )
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


@cope_tiled_backward.register_fake
def _(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor, count: Tensor, start: Tensor,
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
    sharpness: float, of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    likes = (q, k, v, e, gate_k, head_mix, *like_gradients(form, vectors, of_vectors))
    return [q.new_empty(0 if t is None else t.shape) for t in likes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, vectors, form, scale, causal, sharpness = inputs
    ctx.options = form, scale, causal, sharpness
    ctx.save_for_backward(*output, *tensors, *vectors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors  # to be asked for once: checkpointing counts
    saved, vectors = tensors[:12], tensors[12:]
    *needed, of_vectors = ctx.needs_input_grad[:8]
    of_vectors = with_gradient(ctx.options[0], of_vectors)
    grads = cope_tiled_backward(dout, *saved, vectors, *ctx.options, any(of_vectors))
    return (
        *(grad if need else None for grad, need in zip(grads[:6], needed, strict=False)),
        None,
        [grad if need else None for grad, need in zip(grads[6:], of_vectors, strict=True)],
        *(None,) * 4,
    )


def _no_second_derivative(ctx: Any, *_: Any) -> tuple[None, ...]:
    raise NotImplementedError(
        "CoPE's tiled backend has no second derivatives: use backend='reference'"
    )


cope_tiled.register_autograd(_gradients, setup_context=_save)
cope_tiled_backward.register_autograd(_no_second_derivative, setup_context=lambda *_, **__: None)
