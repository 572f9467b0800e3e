"""Attention with an index bias tile by tile: exact, O(n d) memory, on CPUs and any other device.

The function of this backend and its PyTorch operator (`torch.ops.xcope.biased_tiled`), with fake
tensors and autograd registered. The algorithm is in `xcope.ops.biased.cpu.walk`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from xcope.ops import nonfinite
from xcope.ops.biased.cpu import eager, walk
from xcope.ops.biased.cpu.few import biased_attention_few
from xcope.ops.biased.cpu.walk import Body
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.reference import biased_attention_reference
from xcope.ops.biased.terms import (
    first_part,
    flatten,
    like_gradients,
    unflatten,
    with_gradient,
)
from xcope.ops.documents import one_by_one
from xcope.ops.inputs import few_queries
from xcope.ops.nonfinite import Tensors, all_finite, noticed
from xcope.ops.tiling.tiles import compiled_or_none
from xcope.ops.transforms import second_gradients


def biased_attention_tiled(inputs: BiasedInputs) -> Tensor:
    """(b h i dv), dtype of q. Documents are computed one by one.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.
    """
    if inputs.cu_seqlens is not None:
        return each_document(biased_attention_tiled, inputs)
    dtype, mask = inputs.q.dtype, inputs.mask
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = inputs.q.to(wide), inputs.k.to(wide), inputs.v.to(wide)
    form, vectors = flatten(inputs.bias)
    for at, t in enumerate(vectors):
        if t.is_floating_point():
            vectors[at] = t.to(wide)
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    if few_queries(q, k, v, *vectors):
        inputs = replace(inputs, q=q, k=k, v=v, bias=unflatten(form, vectors), mask=mask)
        out = biased_attention_few(inputs)
        if noticed(out):
            out, *_ = rows_of(inputs).forward(
                lambda given: (biased_attention_few(inputs.of(given)),)
            )
    else:
        out, *_ = biased_tiled(q, k, v, mask, vectors, form, inputs.scale, inputs.causal)
    return out.to(dtype)


def each_document(attention: Callable[[BiasedInputs], Tensor], inputs: BiasedInputs) -> Tensor:
    """Attention of each packed document on its own."""

    def of_document(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return attention(replace(inputs, q=q, k=k, v=v, cu_seqlens=None, **given))

    given: dict[str, Any] = {"mask": inputs.mask, "bias": inputs.bias}
    return one_by_one(
        of_document,
        inputs.q,
        inputs.k,
        inputs.v,
        cu_seqlens=cast(Tensor, inputs.cu_seqlens),
        **given,
    )


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


# -- the definition, where tiles do not reach ----------------------------------------------------


def definition(inputs: BiasedInputs, *tensors: Tensor) -> Tensor:
    """`biased_attention_reference` of other tensors, in the order of ``inputs.tensors``."""
    return biased_attention_reference(inputs.of(dict(zip(inputs.tensors, tensors, strict=True))))


def rows_of(inputs: BiasedInputs) -> nonfinite.Call:
    """The call as `xcope.ops.nonfinite` needs it, to compute some rows by the definition."""
    form, among = flatten(inputs.bias)[0], inputs.k.shape[2]

    def some(cut: Tensors, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        bias = first_part(form, cut, queries, keys, among)
        part = replace(inputs, q=cut["q"], k=cut["k"], v=cut["v"], bias=bias, mask=mask)
        return biased_attention_reference(part)

    return nonfinite.Call(
        tensors=inputs.tensors, mask=inputs.mask, causal=inputs.causal, definition=some
    )


# -- the operator --------------------------------------------------------------------------------


@torch.library.custom_op("xcope::biased_tiled", mutates_args=())
def biased_tiled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, vectors: Sequence[Tensor],
    form: str, scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out (b h i dv), and for the backward m and 1 / Σ exp, (b h i).

    float32 or float64; form and vectors as of `xcope.ops.biased.terms.flatten`. Rows that meet
    numbers that are not finite have NaN for 1 / Σ exp, see `xcope.ops.nonfinite`.
    """
    bias, body = unflatten(form, vectors), body_for(q.dtype, q.device)
    inputs = BiasedInputs(q=q, k=k, v=v, bias=bias, mask=mask, scale=scale, causal=causal)
    waits = q.device.type != "cpu"  # to look at numbers
    if waits or all_finite(q, k, v, *vectors):
        out, m, inverse = walk.forward(inputs, body)
        if waits:
            return out, m, inverse
        # a row has no weights if it sees no key, or if its logits are −∞
        if all_finite(out) and not (
            (inverse == 0).any() and rows_of(inputs).lost(out, m, inverse).any()
        ):
            return out, m, inverse
    saved = rows_of(inputs).forward(lambda given: walk.forward(inputs.of(given), body))
    return cast(tuple[Tensor, Tensor, Tensor], saved)


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
    bias, body = unflatten(form, vectors), body_for(q.dtype, q.device)
    inputs = BiasedInputs(q=q, k=k, v=v, bias=bias, mask=mask, scale=scale, causal=causal)
    saved = (out, m, inverse)
    if q.device.type != "cpu" or all_finite(dout, inverse, q, k, v, *vectors):
        grads = walk.backward(inputs, body, dout, saved, of_vectors)
    else:
        grads = rows_of(inputs).backward(
            dout,
            saved,
            lambda dout, saved, given: walk.backward(
                inputs.of(given), body, dout, saved, of_vectors
            ),
        )
    return [grads[name] if name in grads else q.new_empty(0) for name in inputs.tensors]


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
    found = [
        grad if need else None for grad, need in zip(grads, (*needed, *of_vectors), strict=True)
    ]
    return *found[:3], None, found[3:], *(None,) * 3


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    dout, _, _, _, *tensors, vectors, form, scale, causal, _ = inputs
    ctx.options = form, scale, causal
    ctx.save_for_backward(dout, *tensors, *vectors)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, dgrads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    dout, q, k, v, mask, *vectors = ctx.saved_tensors
    form, scale, causal = ctx.options
    bias = unflatten(form, vectors)
    inputs = BiasedInputs(q=q, k=k, v=v, bias=bias, mask=mask, scale=scale, causal=causal)
    ddout, grads = second_gradients(partial(definition, inputs), dout, (q, k, v, *vectors), dgrads)
    return ddout, None, None, None, *grads[:3], None, grads[3:], *(None,) * 4


biased_tiled.register_autograd(_gradients, setup_context=_save)
biased_tiled_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)
