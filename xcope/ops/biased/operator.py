"""The PyTorch operator of attention with an index bias, `torch.ops.xcope.biased_tiled`.

It is computed by tiles (`xcope.ops.biased.cpu.walk`), and has fake tensors and autograd registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xcope.ops.biased.cpu import walk
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.reference import biased_attention_reference
from xcope.ops.inputs import heads_last
from xcope.ops.nonfinite import Repair, Tensors, all_finite
from xcope.ops.sinks import gradient as gradient_of_sink
from xcope.ops.sinks import sunk
from xcope.ops.terms import first_part, like_gradients, names, unflatten, with_gradient
from xcope.ops.transforms import recorded, second_gradients


@torch.library.custom_op("xcope::biased_tiled", mutates_args=())
def biased_tiled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: Tensor | None,
    sink: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out (b h i dv), and for the backward m and 1 / Σ exp, (b h i).

    float32 or float64; form and vectors as of `xcope.ops.terms.flatten`. Rows that meet
    numbers that are not finite have NaN for 1 / Σ exp, see `xcope.ops.nonfinite`.
    """
    inputs = _inputs(q, k, v, mask, window, sink, vectors, form, scale, causal)
    waits = q.device.type != "cpu"  # if numbers are looked at
    if waits or all_finite(sink, *vectors):  # whose NaN may be swallowed
        saved = walk.forward(inputs)
        # 1 / Σ exp is 0 in rows that see no key, and where all logits are −∞
        if waits or (
            all_finite(saved.out)
            and (bool(saved.inverse.all()) or not repair(inputs).lost(*saved).any())
        ):
            out, m, inverse = sunk(saved, sink)
            return out, m, inverse
    redone = repair(inputs).forward(lambda given: walk.forward(inputs.with_named(given)))
    out, m, inverse = sunk(redone, sink)
    return out, m, inverse


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: Tensor | None,
    sink: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
) -> BiasedInputs:  # fmt: skip
    """The operator's arguments as a record."""
    return BiasedInputs(
        q=q,
        k=k,
        v=v,
        bias=unflatten(form, vectors),
        mask=mask,
        window=window,
        sink=sink,
        scale=scale,
        causal=causal,
    )


@biased_tiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = q.shape[:3]
    return heads_last(q, *rows, v.shape[-1]), q.new_empty(rows), q.new_empty(rows)


@torch.library.custom_op(
    "xcope::biased_tiled_backward",
    mutates_args=(),
    # torch 2.6 does not infer it from ``list[Tensor]``
    schema="(Tensor dout, Tensor out, Tensor m, Tensor inverse, Tensor q, Tensor k, Tensor v, "
    "Tensor? mask, Tensor? window, Tensor? sink, Tensor[] vectors, str form, float scale, "
    "bool causal, bool of_vectors) -> Tensor[]",
)
def biased_tiled_backward(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor,
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: Tensor | None,
    sink: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
    of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v and the sink, and ``of_vectors``; empty where there is none."""
    saved = walk.Saved(out, m, inverse)
    inputs = _inputs(q, k, v, mask, window, sink, vectors, form, scale, causal)

    def tiled(dout: Tensor, saved: Sequence[Tensor], given: Tensors) -> Tensors:
        its = inputs.with_named(given)
        grads = walk.backward(dout, walk.Saved(*saved), its, of_vectors)
        if its.sink is not None:
            grads["sink"] = gradient_of_sink(dout, saved, its.sink)
        return grads

    waits = q.device.type != "cpu"  # if numbers are looked at
    grads: Tensors = {}
    if waits or all_finite(inverse, sink, *vectors):
        grads = tiled(dout, saved, inputs.named())
    if not grads or not (waits or all_finite(*grads.values())):
        grads = repair(inputs).backward(dout, saved, tiled)
    wanted = ("q", "k", "v", "sink", *names(form))
    return [grads[name] if name in grads else q.new_empty(0) for name in wanted]


@biased_tiled_backward.register_fake
def _(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor,
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: Tensor | None,
    sink: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float, causal: bool,
    of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    likes = like_gradients(form, vectors, of_vectors)
    return [
        *(heads_last(t, *t.shape) for t in (q, k, v)),
        *(q.new_empty(0 if t is None else t.shape) for t in (sink, *likes)),
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, vectors, form, scale, causal = inputs
    ctx.options = form, scale, causal
    ctx.save_for_backward(*output, *tensors, *vectors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, needed: Sequence[Any], dout: Tensor, *_: Any) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors  # to be asked for once: checkpointing counts
    saved, vectors = tensors[:9], tensors[9:]
    *needed, _of_mask, _of_window, of_sink, of_vectors = needed[:7]
    of_vectors = with_gradient(ctx.options[0], of_vectors)
    grads = biased_tiled_backward(dout, *saved, vectors, *ctx.options, any(of_vectors))
    needed = *needed, of_sink, *of_vectors
    found = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
    return *found[:3], None, None, found[3], found[4:], *(None,) * 3


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    dout, _, _, _, *tensors, vectors, form, scale, causal, _ = inputs
    ctx.options = form, scale, causal
    ctx.save_for_backward(dout, *tensors, *vectors)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, dgrads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    dout, q, k, v, mask, window, sink, *vectors = ctx.saved_tensors

    def of_all(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, *vectors: Tensor) -> Tensor:
        return biased_attention_reference(
            _inputs(q, k, v, mask, window, sink, vectors, *ctx.options)
        )

    ddout, grads = second_gradients(of_all, dout, (q, k, v, sink, *vectors), dgrads)
    return ddout, None, None, None, *grads[:3], None, None, grads[3], grads[4:], *(None,) * 4


attend = recorded(biased_tiled, _save, _gradients, at=6)
biased_tiled_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)


def repair(inputs: BiasedInputs) -> Repair:
    """What computes the rows that meet a number that is not finite."""
    form, among = "" if inputs.bias is None else type(inputs.bias).__name__, inputs.k.shape[2]

    def of_rows(cut: Tensors, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        bias = first_part(form, cut, queries, keys, among)
        its = replace(inputs.with_named(cut), mask=mask, bias=bias, window=None)
        return biased_attention_reference(its)

    return Repair(
        tensors=inputs.named(),
        mask=inputs.mask,
        causal=inputs.causal,
        window=inputs.window,
        definition=of_rows,
        everywhere=("sink",) if inputs.sink is not None else (),
    )
