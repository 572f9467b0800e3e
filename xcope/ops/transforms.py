"""Operators under PyTorch's transforms: gradients of gradients, `torch.func`, forward mode.

The fused operators have first derivatives of their own. What is differentiated further, or in
forward mode, is the definition, in (b h i j) memory; it is computed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Definition = Callable[..., Tensor]


def by_definition(*tensors: Tensor | None) -> bool:
    """Whether a transform of `torch.func` or forward mode is at work: fused operators know neither.

    Compiled graphs know of `torch.func` only.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual
    return any(t is not None and unpack(t).tangent is not None for t in tensors)


def gradients(
    definition: Definition, dout: Tensor, tensors: Sequence[Tensor | None], wanted: Sequence[int]
) -> tuple[Tensor, ...]:
    """Gradients of the wanted tensors, by the definition; they can be differentiated again."""

    def forward(*some: Tensor) -> Tensor:
        whole = list(tensors)
        for n, t in zip(wanted, some, strict=True):
            whole[n] = t
        return definition(*whole)

    # not torch.autograd.grad: one tensor may be several of the arguments
    pull = torch.func.vjp(forward, *(tensors[n] for n in wanted))[1]
    return cast(tuple[Tensor, ...], pull(dout))


def second_gradients(
    definition: Definition,
    dout: Tensor,
    tensors: Sequence[Tensor | None],
    dgrads: Sequence[Tensor | None],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The backward of a fused backward.

    Args:
        definition: takes the tensors, returns what the operator does; plain, differentiable.
        dout: that the backward was given.
        tensors: the operator's, None where there is none.
        dgrads: what reaches the gradients of these; None, or an empty tensor, where nothing does.

    Returns:
        The gradient of ``dout`` and those of ``tensors``; None where there is none.
    """
    wanted = [n for n, grad in enumerate(dgrads) if _fits(grad, tensors[n])]
    found: list[Tensor | None] = [None] * len(tensors)
    if not wanted:
        return None, found
    through = [n for n, t in enumerate(tensors) if t is not None and t.is_floating_point()]

    def backward(dout: Tensor, *some: Tensor) -> tuple[Tensor, ...]:
        whole = list(tensors)
        for n, t in zip(through, some, strict=True):
            whole[n] = t
        return gradients(definition, dout, whole, wanted)

    with torch.autocast(dout.device.type, enabled=False):
        pull = torch.func.vjp(backward, dout, *(tensors[n] for n in through))[1]
        ddout, *others = pull(tuple(dgrads[n] for n in wanted))
    for n, grad in zip(through, others, strict=True):
        found[n] = grad
    return ddout, found


def _fits(grad: Tensor | None, tensor: Tensor | None) -> bool:
    return grad is not None and tensor is not None and grad.shape == tensor.shape


def recorded(op: Any, save: Any, gradients: Any, at: int) -> Callable[..., Any]:
    """``op`` with a backward, also outside of graphs that are compiled.

    There what `torch.library` records takes 0.3 ms a call, as long as attention of a small model.

    Args:
        op: a custom operator, of which one argument is a list of tensors.
        save: of its context, inputs and output, as `register_autograd` takes it.
        gradients: of the context, ``needs_input_grad`` as `register_autograd` gives it, and the
            gradients of the output; those of the inputs.
        at: which argument is the list.
    """

    def packed(flat: Sequence[Any], end: int) -> tuple[Any, ...]:
        return *flat[:at], list(flat[end:]), *flat[at:end]

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, end: int, *flat: Any) -> Any:
            ctx.end = end
            inputs = packed(flat, end)
            output = op(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *dout: Tensor) -> tuple[Any, ...]:
            grads = gradients(ctx, packed(ctx.needs_input_grad[1:], ctx.end), *dout)
            return None, *grads[:at], *grads[at + 1 :], *grads[at]

    op.register_autograd(
        lambda ctx, *dout: gradients(ctx, ctx.needs_input_grad, *dout), setup_context=save
    )

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*inputs)
        flat = (*inputs[:at], *inputs[at + 1 :], *inputs[at])
        return Recorded.apply(len(inputs) - 1, *flat)  # type: ignore[no-untyped-call]

    return call


class _Again(torch.autograd.Function):
    """Its first argument; where gradients are differentiated further, that of the definition."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, definition: Definition, *tensors: Tensor) -> Tensor:
        ctx.definition = definition
        ctx.save_for_backward(*tensors)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        grads: list[Tensor | None] = [None] * len(tensors)
        if not torch.is_grad_enabled():
            return dout, None, *grads
        wanted = [n for n, need in enumerate(needed) if need]
        with torch.autocast(dout.device.type, enabled=False):
            found = gradients(ctx.definition, dout, tensors, wanted)
        for n, grad in zip(wanted, found, strict=True):
            grads[n] = grad
        return None, None, *grads


def differentiable_again(out: Tensor, definition: Definition, *tensors: Tensor) -> Tensor:
    """``out``, made of the tensors by an operator that has no second derivatives.

    Its gradients are the operator's, unless they are to be differentiated (``create_graph=True``):
    then they are the definition's. While compiling it is ``out`` as it is: compiled graphs have no
    second derivatives.
    """
    if torch.compiler.is_compiling() or not out.requires_grad:
        return out
    return cast(Tensor, _Again.apply(out, definition, *tensors))  # type: ignore[no-untyped-call]
