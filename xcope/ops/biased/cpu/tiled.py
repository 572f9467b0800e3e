"""Attention with an index bias tile by tile: exact, O(n d) memory, on CPUs and any other device.

The public function of this backend and its PyTorch operator (`torch.ops.xcope.biased_tiled`),
with fake tensors and autograd registered. The algorithm is in `xcope.ops.biased.cpu.walk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from xcope.ops import nonfinite
from xcope.ops.biased.cpu import eager, few, walk
from xcope.ops.biased.cpu.walk import Body
from xcope.ops.biased.forms import (
    cast_to,
    first_part,
    flatten,
    like_gradients,
    names,
    unflatten,
    with_gradient,
)
from xcope.ops.biased.reference import biased_attention_reference
from xcope.ops.biased.terms import Terms
from xcope.ops.documents import one_by_one
from xcope.ops.inputs import few_queries
from xcope.ops.nonfinite import Tensors, all_finite, noticed
from xcope.ops.tiling.tiles import Heads, compiled_or_none, sorted_by_key_head
from xcope.ops.transforms import second_gradients


def biased_attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Terms | None,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Arguments as of `xcope.ops.biased.biased_attention`, already checked.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. Documents are
    computed one by one.
    """
    if cu_seqlens is not None:
        given: dict[str, Any] = {"mask": mask, "bias": bias, "scale": scale, "causal": causal}
        return one_by_one(biased_attention_tiled, q, k, v, cu_seqlens=cu_seqlens, **given)
    dtype = q.dtype
    q, k, v = (t.to(torch.promote_types(dtype, torch.float32)) for t in (q, k, v))
    form, vectors = flatten(None if bias is None else cast_to(bias, q))
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    if few_queries(q, k, v, *vectors):

        def attend(given: Tensors) -> tuple[Tensor]:
            q, k, v, *vectors = (given[name] for name in (*"qkv", *names(form)))
            terms = unflatten(form, vectors)
            return (few.biased_attention_few(q, k, v, terms, mask, scale, causal),)

        call = call_by_definition((q, k, v), vectors, form, mask, scale, causal)
        out, *_ = attend(call.tensors)
        if noticed(out):
            out, *_ = call.forward(attend)
        return out.to(dtype)
    out, *_ = biased_tiled(q, k, v, mask, vectors, form, scale, causal)
    return cast(Tensor, out).to(dtype)


def body_for(dtype: torch.dtype, device: torch.device) -> Body:
    """The fastest body there is: compiled for float32 on CPUs that numba knows, else eager."""
    if device.type == "cpu" and dtype == torch.float32:
        return compiled_body() or cast(Body, eager)
    return cast(Body, eager)


@cache
def compiled_body() -> Body | None:
    """The body compiled by numba, or None where it cannot be had; says so once."""
    what = "attention with an index bias"
    return cast(Body | None, compiled_or_none("xcope.ops.biased.cpu.numba", what))


def _call(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> tuple[Heads, Body]:
    body, heads = body_for(q.dtype, q.device), q.shape[1]
    q, k, v, hidden = sorted_by_key_head(q, k, v, mask)
    call = Heads(q=q, k=k, v=v, hidden=hidden, scale=scale, causal=causal, heads=heads, body=body)
    return call, body


def call_by_definition(
    qkv: tuple[Tensor, ...], vectors: Sequence[Tensor], form: str, mask: Tensor | None,
    scale: float, causal: bool,
) -> nonfinite.Repair:  # fmt: skip
    """What `xcope.ops.nonfinite` is told of a call."""
    tensors = dict(zip((*"qkv", *names(form)), (*qkv, *vectors), strict=True))

    def definition(cut: Tensors, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        bias = first_part(form, cut, queries, keys, qkv[1].shape[2])
        return biased_attention_reference(
            cut["q"], cut["k"], cut["v"], bias, scale=scale, mask=mask, causal=causal
        )

    return nonfinite.Repair(tensors=tensors, mask=mask, causal=causal, definition=definition)


def _forward(
    given: Tensors, form: str, mask: Tensor | None, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`biased_tiled` of numbers that are finite."""
    q, k, v, *vectors = (given[name] for name in (*"qkv", *names(form)))
    call, body = _call(q, k, v, mask, scale, causal)
    result = walk.forward(call, body, body.Bias(unflatten(form, vectors), _size(q, k)))
    rows = q.shape[:3]
    return result.out.view(*rows, v.shape[-1]), result.m.view(rows), result.inverse.view(rows)


def _backward(
    dout: Tensor, saved: tuple[Tensor, ...], given: Tensors, form: str, mask: Tensor | None,
    scale: float, causal: bool, of_vectors: bool,
) -> Tensors:  # fmt: skip
    """`biased_tiled_backward` of numbers that are finite, by name."""
    q, k, v, *vectors = (given[name] for name in (*"qkv", *names(form)))
    call, body = _call(q, k, v, mask, scale, causal)
    bias = body.Bias(unflatten(form, vectors), _size(q, k), of_vectors)
    rows = call.q.shape[:3]
    out, m, inverse = saved
    result = walk.Result(out.view(*rows, v.shape[-1]), m.view(rows), inverse.view(rows))
    grads = walk.backward(call, body, bias, result, dout.contiguous().view(*rows, v.shape[-1]))
    found = {"q": grads.q.view(q.shape), "k": grads.k.view(k.shape), "v": grads.v.view(v.shape)}
    return found | bias.gradients()


def _size(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    b, h, i, _ = q.shape
    return b, h, i, k.shape[2]


@torch.library.custom_op("xcope::biased_tiled", mutates_args=())
def biased_tiled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, vectors: Sequence[Tensor],
    form: str, scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out (b h i dv), and for the backward m and 1 / Σ exp, (b h i).

    float32 or float64; form and vectors as of `xcope.ops.biased.forms.flatten`. Rows that meet
    numbers that are not finite have NaN for 1 / Σ exp, see `xcope.ops.nonfinite`.
    """

    def tiled(given: Tensors) -> tuple[Tensor, ...]:
        return _forward(given, form, mask, scale, causal)

    call = call_by_definition((q, k, v), vectors, form, mask, scale, causal)
    waits = q.device.type != "cpu"
    if waits or all_finite(q, k, v, *vectors):
        saved = tiled(call.tensors)
        if waits or (all_finite(saved[0]) and not call.lost(*saved).any()):
            return cast(tuple[Tensor, Tensor, Tensor], saved)
    return cast(tuple[Tensor, Tensor, Tensor], call.forward(tiled))


@biased_tiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = q.shape[:3]
    return q.new_empty(*rows, v.shape[-1]), q.new_empty(rows), q.new_empty(rows)


@torch.library.custom_op("xcope::biased_tiled_backward", mutates_args=())
def biased_tiled_backward(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor,
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, vectors: Sequence[Tensor],
    form: str, scale: float, causal: bool, of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k and v, and ``of_vectors``; these empty where there is none."""

    def tiled(dout: Tensor, saved: tuple[Tensor, ...], given: Tensors) -> Tensors:
        return _backward(dout, saved, given, form, mask, scale, causal, of_vectors)

    call = call_by_definition((q, k, v), vectors, form, mask, scale, causal)
    saved = (out, m, inverse)
    if q.device.type != "cpu" or all_finite(dout, inverse, *call.tensors.values()):
        grads = tiled(dout, saved, call.tensors)
    else:
        grads = call.backward(dout, saved, tiled)
    return [grads.get(name, q.new_empty(0)) for name in (*"qkv", *names(form))]


@biased_tiled_backward.register_fake
def _(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor,
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, vectors: Sequence[Tensor],
    form: str, scale: float, causal: bool, of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    likes = (q, k, v, *like_gradients(form, vectors, of_vectors))
    return [q.new_empty(0 if t is None else t.shape) for t in likes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, vectors, form, scale, causal = inputs
    ctx.options = form, scale, causal
    ctx.save_for_backward(*output, *tensors, *vectors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors  # to be asked for once: checkpointing counts
    saved, vectors = tensors[:7], tensors[7:]
    *needed, _of_mask, of_vectors = ctx.needs_input_grad[:5]
    of_vectors = with_gradient(ctx.options[0], of_vectors)
    grads = biased_tiled_backward(dout, *saved, vectors, *ctx.options, any(of_vectors))
    return (
        *(grad if need else None for grad, need in zip(grads[:3], needed, strict=True)),
        None,
        [grad if need else None for grad, need in zip(grads[3:], of_vectors, strict=True)],
        *(None,) * 3,
    )


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    dout, _, _, _, *tensors, vectors, form, scale, causal, _ = inputs
    ctx.options = form, scale, causal
    ctx.save_for_backward(dout, *tensors, *vectors)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, dgrads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    dout, q, k, v, mask, *vectors = ctx.saved_tensors
    form, scale, causal = ctx.options

    def definition(q: Tensor, k: Tensor, v: Tensor, *vectors: Tensor) -> Tensor:
        bias = unflatten(form, vectors)
        return biased_attention_reference(q, k, v, bias, scale=scale, mask=mask, causal=causal)

    ddout, grads = second_gradients(definition, dout, (q, k, v, *vectors), dgrads)
    return ddout, None, None, None, *grads[:3], None, grads[3:], *(None,) * 4


biased_tiled.register_autograd(_gradients, setup_context=_save)
biased_tiled_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)
