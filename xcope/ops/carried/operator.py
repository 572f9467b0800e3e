"""The PyTorch operator of attention with carried queries, `torch.ops.xcope.carried`.

It is computed in groups and blocks (`xcope.ops.carried.walk`), and has fake tensors and autograd
registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xcope.ops.carried import walk
from xcope.ops.carried.inputs import CarriedInputs
from xcope.ops.carried.reference import carried_attention_reference, definition
from xcope.ops.inputs import heads_last
from xcope.ops.nonfinite import Repair, Tensors, all_finite
from xcope.ops.sinks import gradient as gradient_of_sink
from xcope.ops.sinks import sunk
from xcope.ops.terms import first_part, like_gradients, names, unflatten, with_gradient
from xcope.ops.transforms import recorded, second_gradients

DIFFERENTIABLE = ("q", "k", "v", "moves", "sink")
GIVEN = len(DIFFERENTIABLE) + 1  # and the mask, before the bias' vectors


def _inputs(given: Sequence[Any]) -> CarriedInputs:
    q, k, v, moves, sink, mask, vectors, form, kind, scale, *_ = given
    return CarriedInputs(
        kind=kind,
        q=q,
        k=k,
        v=v,
        moves=moves,
        bias=unflatten(form, vectors),
        scale=scale,
        mask=mask,
        sink=sink,
    )


_SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor moves, Tensor? sink, Tensor? mask, Tensor[] vectors, "
    "str form, str kind, float scale"
)


@torch.library.custom_op(
    "xcope::carried", mutates_args=(), schema=f"({_SCHEMA}) -> (Tensor, Tensor, Tensor)"
)
def carried(*given: Any) -> tuple[Tensor, ...]:
    """out (b h i dv), and for the backward m and 1 / Σ exp, (b h i).

    float32 or float64, as many key heads as heads; form and vectors as of
    `xcope.ops.terms.flatten`. Rows that meet numbers that are not finite have NaN for 1 / Σ exp,
    see `xcope.ops.nonfinite`.
    """
    inputs = _inputs(given)
    with torch.autocast(inputs.q.device.type, enabled=False):
        waits = inputs.q.device.type != "cpu"  # if numbers are looked at
        if waits or all_finite(*inputs.named().values()):
            saved = walk.forward(inputs)
            if waits or (
                all_finite(saved.out)
                and (bool(saved.inverse.all()) or not repair(inputs).lost(*saved).any())
            ):
                return sunk(saved, inputs.sink)
        redone = repair(inputs).forward(lambda some: walk.forward(inputs.with_named(some)))
        return sunk(redone, inputs.sink)


@carried.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return tuple(walk.empty(_inputs(given)))


@torch.library.custom_op(
    "xcope::carried_backward",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor[] saved, {_SCHEMA}, bool of_vectors) -> Tensor[]",
)
def carried_backward(dout: Tensor, saved: Sequence[Tensor], *given: Any) -> list[Tensor]:
    """Gradients of `DIFFERENTIABLE`, and ``of_vectors``; empty where there is none."""
    inputs, kept, of_vectors = _inputs(given), walk.Saved(*saved), given[-1]

    def tiled(dout: Tensor, saved: Sequence[Tensor], some: Tensors) -> Tensors:
        its = inputs.with_named(some)
        grads = walk.backward(dout, walk.Saved(*saved), its, of_vectors)
        if its.sink is not None:
            grads["sink"] = gradient_of_sink(dout, saved, its.sink)
        return grads

    with torch.autocast(dout.device.type, enabled=False):
        waits = dout.device.type != "cpu"  # if numbers are looked at
        grads: Tensors = {}
        if waits or all_finite(kept.inverse, *inputs.named().values()):
            grads = tiled(dout, kept, inputs.named())
        if not grads or not (waits or all_finite(*grads.values())):
            grads = repair(inputs).backward(dout, kept, tiled)
    wanted = (*DIFFERENTIABLE, *names(given[GIVEN + 1]))
    return [grads[name] if name in grads else dout.new_empty(0) for name in wanted]


@carried_backward.register_fake
def _(dout: Tensor, saved: Sequence[Tensor], *given: Any) -> list[Tensor]:
    *tensors, sink, _, vectors, form, _, _, of_vectors = given
    likes = like_gradients(form, vectors, of_vectors)
    return [
        *(heads_last(t, *t.shape) for t in tensors),
        *(dout.new_empty(0 if t is None else t.shape) for t in (sink, *likes)),
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, vectors = inputs[: GIVEN + 1]
    ctx.options = inputs[GIVEN + 1 :]
    ctx.save_for_backward(*output, *tensors, *vectors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, needed: Sequence[Any], dout: Tensor, *_: Any) -> tuple[Any, ...]:
    kept = ctx.saved_tensors  # to be asked for once: checkpointing counts
    saved, tensors, vectors = kept[:3], kept[3 : 3 + GIVEN], kept[3 + GIVEN :]
    *needed, _of_mask, of_vectors = needed[: GIVEN + 1]
    of_vectors = with_gradient(ctx.options[0], of_vectors)
    grads = carried_backward(dout, saved, *tensors, vectors, *ctx.options, any(of_vectors))
    found = [
        grad if need else None for grad, need in zip(grads, (*needed, *of_vectors), strict=True)
    ]
    of_tensors, of_bias = found[: GIVEN - 1], found[GIVEN - 1 :]
    return *of_tensors, None, of_bias, *(None,) * len(ctx.options)


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    dout, _, *tensors = inputs[: GIVEN + 2]
    vectors, ctx.options = inputs[GIVEN + 2], inputs[GIVEN + 3 :]
    ctx.save_for_backward(dout, *tensors, *vectors)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, dgrads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    dout, *given = ctx.saved_tensors  # to be asked for once: checkpointing counts
    tensors, vectors = given[:GIVEN], given[GIVEN:]
    inputs = _inputs((*tensors, vectors, *ctx.options))
    of_tensors = tensors[:-1]
    ddout, grads = second_gradients(
        partial(definition, inputs), dout, (*of_tensors, *vectors), dgrads
    )
    found = *grads[: GIVEN - 1], None, grads[GIVEN - 1 :]
    return ddout, [None] * 3, *found, *(None,) * len(ctx.options)


attend = recorded(carried, _save, _gradients, at=GIVEN)
carried_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)


def repair(inputs: CarriedInputs) -> Repair:
    """What computes the rows that meet a number that is not finite."""
    form, among = "" if inputs.bias is None else type(inputs.bias).__name__, inputs.k.shape[2]

    def of_rows(cut: Tensors, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        bias = first_part(form, cut, queries, keys, among)
        cut = cut | {"moves": cut["moves"][:, :, keys]}
        return carried_attention_reference(replace(inputs.with_named(cut), mask=mask, bias=bias))

    return Repair(
        tensors=inputs.named(),
        mask=inputs.mask,
        causal=True,
        definition=of_rows,
        everywhere=("sink",) if inputs.sink is not None else (),
    )
