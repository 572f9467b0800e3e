"""The PyTorch operator of CoPE attention, `torch.ops.xcope.cope`: fake tensors and autograd.

Behind it are the tiles in PyTorch operations and numba (`xcope.ops.cope.cpu.tiled`) and the Triton
kernels (`xcope.ops.cope.gpu.launch`); its argument ``kernels`` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from xcope.ops.biased.terms import like_gradients, unflatten, with_gradient
from xcope.ops.cope.reference import cope_attention_reference
from xcope.ops.transforms import second_gradients

Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Kernels(Protocol):
    """What is behind the operator; arguments as of `cope` and `cope_backward`."""

    @staticmethod
    def run(
        q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
        mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
        scale: float, causal: bool, sharpness: float,
    ) -> Saved: ...  # fmt: skip

    @staticmethod
    def run_backward(
        dout: Tensor, saved: Saved, q: Tensor, k: Tensor, v: Tensor, e: Tensor,
        gate_k: Tensor | None, head_mix: Tensor | None, mask: Tensor | None,
        documents: Tensor | None, vectors: Sequence[Tensor], form: str, scale: float,
        causal: bool, sharpness: float, of_vectors: bool,
    ) -> list[Tensor]: ...  # fmt: skip

    @staticmethod
    def fake(q: Tensor, v: Tensor) -> Saved: ...


def behind(kernels: str) -> Kernels:
    """The implementation of this name."""
    where = {"tiled": "cpu.tiled", "triton": "gpu.launch"}[kernels]
    return cast(Kernels, import_module("xcope.ops.cope." + where))


@torch.library.custom_op("xcope::cope", mutates_args=())
def cope(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
    scale: float, causal: bool, sharpness: float, kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out (b h i dv), and four tensors for the backward.

    Vectors and form of a bias as of `xcope.ops.biased.terms.flatten`; documents: cu_seqlens.
    """
    with torch.autocast(q.device.type, enabled=False):  # both passes must count alike
        return behind(kernels).run(
            q, k, v, e, gate_k, head_mix, mask, documents, vectors, form, scale, causal, sharpness
        )


@cope.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Saved:
    return behind(rest[-1]).fake(q, v)


@torch.library.custom_op("xcope::cope_backward", mutates_args=())
def cope_backward(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor, count: Tensor, start: Tensor,
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
    scale: float, causal: bool, sharpness: float, kernels: str, of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, v, e, gate_k, head_mix, and ``of_vectors``; empty where there is none."""
    with torch.autocast(q.device.type, enabled=False):
        return behind(kernels).run_backward(
            dout, (out, m, inverse, count, start), q, k, v, e, gate_k, head_mix, mask, documents,
            vectors, form, scale, causal, sharpness, of_vectors,
        )  # fmt: skip


@cope_backward.register_fake
def _(
    dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor, count: Tensor, start: Tensor,
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
    scale: float, causal: bool, sharpness: float, kernels: str, of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    likes = (q, k, v, e, gate_k, head_mix, *like_gradients(form, vectors, of_vectors))
    return [q.new_empty(0) if t is None else t.new_empty(t.shape) for t in likes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, vectors, form, scale, causal, sharpness, kernels = inputs
    ctx.options = form, scale, causal, sharpness, kernels
    ctx.save_for_backward(*output, *tensors, *vectors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors  # to be asked for once: checkpointing counts
    saved, vectors = tensors[:13], tensors[13:]
    *needed, _masked, _packed, of_vectors = ctx.needs_input_grad[:9]
    of_vectors = with_gradient(ctx.options[0], of_vectors)
    grads = cope_backward(dout, *saved, vectors, *ctx.options, any(of_vectors))
    return (
        *(grad if need else None for grad, need in zip(grads[:6], needed, strict=True)),
        None,
        None,
        [grad if need else None for grad, need in zip(grads[6:], of_vectors, strict=True)],
        *(None,) * 5,
    )


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    dout, _, _, _, _, _, *tensors, vectors, form, scale, causal, sharpness, _, _ = inputs
    ctx.options = form, scale, causal, sharpness
    ctx.save_for_backward(dout, *tensors, *vectors)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, dgrads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    dout, *tensors = ctx.saved_tensors  # to be asked for once: checkpointing counts
    tensors, (mask, documents), vectors = tensors[:6], tensors[6:8], tensors[8:]
    form, scale, causal, sharpness = ctx.options

    def definition(
        q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor, head_mix: Tensor,
        *vectors: Tensor,
    ) -> Tensor:  # fmt: skip
        return cope_attention_reference(
            q,
            k,
            v,
            e,
            scale=scale,
            mask=mask,
            causal=causal,
            soft_onehot=sharpness > 0,
            soft_onehot_temp=1 / (sharpness or 1.0),
            gate_k=gate_k,
            head_mix=head_mix,
            bias=unflatten(form, vectors),
            cu_seqlens=documents,
        )

    ddout, grads = second_gradients(definition, dout, (*tensors, *vectors), dgrads)
    return ddout, *(None,) * 5, *grads[:6], None, None, grads[6:], *(None,) * 6


cope.register_autograd(_gradients, setup_context=_save)
cope_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)
