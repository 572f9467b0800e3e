"""The PyTorch operator, `torch.ops.xcope.cope`: fake tensors and autograd.

It is computed by tiles (`xcope.ops.cope.cpu.walk`) or by Triton's kernels
(`xcope.ops.cope.gpu.launch`); its last argument, ``backend``, says which. It takes the fields of
`CopeInputs` one by one, see `CopeInputs.flat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xcope.ops.cope.cpu import walk
from xcope.ops.cope.inputs import DIFFERENTIABLE, SCHEMA, TENSORS, CopeInputs
from xcope.ops.cope.reference import cope_attention_reference
from xcope.ops.documents import within_documents
from xcope.ops.fallback import warn
from xcope.ops.inputs import heads_last
from xcope.ops.nonfinite import Repair, Tensors, all_finite
from xcope.ops.sinks import gradient as gradient_of_sink
from xcope.ops.sinks import sunk
from xcope.ops.terms import first_part, like_gradients, names, with_gradient
from xcope.ops.transforms import recorded, second_gradients

SAVED = 5  # tensors that the forward gives
VECTORS = len(TENSORS)  # where the bias' vectors come among the arguments
WHAT = {
    "count": "CoPE attention",
    "distance": "attention with relative positions",
    "decay": "attention that decays",
    "stick": "stick-breaking attention",
}


@torch.library.custom_op(
    "xcope::cope",
    mutates_args=(),
    schema=f"({SCHEMA}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def cope(*given: Any) -> tuple[Tensor, ...]:
    """out (b h i dv), and four tensors for the backward, see `walk.Saved` or `launch.Saved`.

    In tiles, rows that meet numbers that are not finite have NaN for 1 / Σ exp, see `nonfinite`.
    """
    inputs, backend = CopeInputs.of(given), given[-1]
    with torch.autocast(inputs.q.device.type, enabled=False):  # both passes must count alike
        if backend == "triton":
            from xcope.ops.cope.gpu import launch  # noqa: PLC0415, Triton may be missing

            return tuple(launch.forward(inputs))
        if all_finite(*_swallowed(inputs)):
            saved = walk.forward(inputs)
            # 1 / Σ exp is 0 in rows that see no key, and where all logits are −∞
            if all_finite(saved.out) and (
                bool(saved.inverse.all()) or not repair(inputs).lost(*saved).any()
            ):
                return sunk(saved, inputs.sink)
        redone = repair(inputs).forward(lambda given: walk.forward(inputs.with_named(given)))
        return sunk(redone, inputs.sink)


@cope.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    inputs, backend = CopeInputs.of(given), given[-1]
    if backend == "triton":
        from xcope.ops.cope.gpu import launch  # noqa: PLC0415, Triton may be missing

        return tuple(launch.empty(inputs))
    return tuple(walk.empty(inputs))


@torch.library.custom_op(
    "xcope::cope_backward",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor[] saved, {SCHEMA}, str backend, bool of_bias) -> Tensor[]",
)
def cope_backward(dout: Tensor, saved: Sequence[Tensor], *given: Any) -> list[Tensor]:
    """Gradients of the tensors, then those of the bias' vectors; empty where there is none."""
    inputs, (backend, of_bias) = CopeInputs.of(given), given[-2:]
    with torch.autocast(dout.device.type, enabled=False):
        if backend == "triton":
            grads = _backward_by_kernels(dout, saved, inputs)
        else:
            grads = _backward_in_tiles(dout, saved, inputs, of_bias)
    vectors = [] if inputs.bias is None else names(type(inputs.bias).__name__)
    return [grads.get(name, dout.new_empty(0)) for name in (*TENSORS, *vectors)]


@cope_backward.register_fake
def _(dout: Tensor, saved: Sequence[Tensor], *given: Any) -> list[Tensor]:
    tensors, vectors, form = given[:VECTORS], *given[VECTORS : VECTORS + 2]
    backend = given[-2]
    likes = [t if n in DIFFERENTIABLE else None for n, t in zip(TENSORS, tensors, strict=True)]
    likes += like_gradients(form, vectors, given[-1])
    return [
        dout.new_empty(0)
        if t is None
        else heads_last(t, *t.shape)
        if t.ndim == 4 and backend != "triton"
        else t.new_empty(t.shape)
        for t in likes
    ]


# -- autograd --------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, vectors = inputs[: VECTORS + 1]
    ctx.options = inputs[VECTORS + 1 :]
    ctx.save_for_backward(*output, *tensors, *vectors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, needed: Sequence[Any], dout: Tensor, *_: Any) -> tuple[Any, ...]:
    kept = ctx.saved_tensors  # to be asked for once: checkpointing counts
    saved, tensors = kept[:SAVED], kept[SAVED : SAVED + VECTORS]
    vectors, options = kept[SAVED + VECTORS :], ctx.options
    *needed, of_vectors = needed[: VECTORS + 1]
    of_vectors = with_gradient(options[0], of_vectors)
    grads = cope_backward(dout, saved, *tensors, vectors, *options, any(of_vectors))
    wanted = [g if need else None for g, need in zip(grads, (*needed, *of_vectors), strict=True)]
    return *wanted[:VECTORS], wanted[VECTORS:], *(None,) * len(options)


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    dout, _, *tensors = inputs[: VECTORS + 2]
    vectors, ctx.options = inputs[VECTORS + 2], inputs[VECTORS + 3 :]
    ctx.save_for_backward(dout, *tensors, *vectors)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, dgrads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    dout, *tensors = ctx.saved_tensors  # to be asked for once: checkpointing counts

    def definition(*tensors: Tensor) -> Tensor:
        flat = (*tensors[:VECTORS], tensors[VECTORS:], *ctx.options)
        return cope_attention_reference(CopeInputs.of(flat))

    ddout, grads = second_gradients(definition, dout, tensors, dgrads)
    return ddout, [None] * SAVED, *grads[:VECTORS], grads[VECTORS:], *(None,) * len(ctx.options)


attend = recorded(cope, _save, _gradients, at=VECTORS)
cope_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)


# -- who computes ----------------------------------------------------------------------------------


def _backward_in_tiles(
    dout: Tensor, saved: Sequence[Tensor], inputs: CopeInputs, of_bias: bool = False
) -> Tensors:
    """By name."""
    kept = walk.Saved(*saved)

    def tiled(dout: Tensor, saved: Sequence[Tensor], given: Tensors) -> Tensors:
        grads = walk.backward(dout, walk.Saved(*saved), inputs.with_named(given), of_bias)
        if inputs.sink is not None:
            grads["sink"] = gradient_of_sink(dout, saved, given["sink"])
        return grads

    if all_finite(kept.inverse, *_swallowed(inputs)):
        grads = tiled(dout, kept, inputs.named())
        if all_finite(*grads.values()):
            return grads

    return repair(inputs).backward(dout, kept, tiled)


def _swallowed(inputs: CopeInputs) -> list[Tensor]:
    """Tensors whose NaN a count or a bias may swallow, so that what is computed is finite."""
    # logits and values keep it; but of a stick that is broken up nothing further is looked at
    kept = () if inputs.recurrence == "stick" else ("q", "k", "v")
    return [t for name, t in inputs.named().items() if name not in kept]


def repair(inputs: CopeInputs) -> Repair:
    """What computes the rows of CoPE attention that meet a number that is not finite."""
    given, j = inputs.named(), inputs.k.shape[2]

    def definition(cut: Tensors, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        form = "" if inputs.bias is None else type(inputs.bias).__name__
        bias = first_part(form, cut, queries, keys, j)
        its = replace(inputs.with_named(cut), mask=mask, bias=bias, window=None)
        return cope_attention_reference(its)

    everywhere = [name for name in ("head_mix", "sink") if name in given]
    return Repair(
        tensors=given,
        mask=inputs.mask,
        causal=inputs.causal,
        window=inputs.window,
        definition=definition,
        mixed="head_mix" in given,
        everywhere=(*everywhere, *["pos_emb"] * inputs.soft_onehot),
        together=inputs.recurrence in ("decay", "stick"),
    )


def _backward_by_kernels(dout: Tensor, saved: Sequence[Tensor], inputs: CopeInputs) -> Tensors:
    """By name; in tiles, forward and backward, where no kernels fit on this GPU."""
    from xcope.ops.cope.gpu import launch  # noqa: PLC0415, Triton may be missing

    try:
        return launch.backward(dout.contiguous(), launch.Saved(*saved), inputs)
    except launch.OutOfResources as error:
        warn(WHAT[inputs.recurrence], f"no tiles fit: {error}")
    wide = inputs.widened()
    if inputs.cu_seqlens is not None:
        mask = within_documents(inputs.mask, inputs.cu_seqlens, inputs.q.shape[2])
        wide = replace(wide, mask=mask, cu_seqlens=None)
    grads = _backward_in_tiles(dout.float(), cope(*wide.flat(), "tiled"), wide)
    return {name: grad.to(getattr(inputs, name).dtype) for name, grad in grads.items()}
