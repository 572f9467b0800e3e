"""Polar coordinates: what PoPE makes of queries and keys.

Shape notation: b batch, h heads, n places, d channels of a head.

    x_c → r_c (cos(θ_c − φ_c), sin(θ_c − φ_c)),  r_c = softplus(x_c)

so that q·k = Σ_c r_c(q) r_c(k) cos(angle between them).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.transforms import by_definition, second_gradients


def polar(x: Tensor, cos: Tensor, sin: Tensor, phase: Tensor | None = None) -> Tensor:
    """Magnitudes softplus(x) at the angles θ − φ: all the cosines, then all the sines.

    Low-precision ``x`` is computed in float32 and rounded once. The backward keeps ``x``, cos and
    sin, and makes the rest again; cos and sin get no gradients.

    Args:
        x: (b h n d).
        cos: cos θ, (n d) or (b n d), float32 or float64.
        sin: sin θ, as ``cos``.
        phase: φ, (h d); 0 if None.

    Returns:
        (b h n 2d) in the dtype of ``x``.
    """
    if by_definition(x, cos, phase):
        return polar_reference(x, cos, sin, phase)
    return cast(Tensor, to_polar(x, cos, sin, phase))


def polar_reference(x: Tensor, cos: Tensor, sin: Tensor, phase: Tensor | None = None) -> Tensor:
    """The definition of `polar`, as complex numbers r·e^{i(θ − φ)}; same arguments."""
    turn = torch.complex(cos, sin)
    turn = turn[:, None] if turn.ndim == 3 else turn
    if phase is not None:
        turn = turn * torch.polar(torch.ones_like(phase), -phase)[:, None]
    z = F.softplus(x.to(cos.dtype)) * turn
    return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)


@torch.library.custom_op("xcope::to_polar", mutates_args=())
def to_polar(x: Tensor, cos: Tensor, sin: Tensor, phase: Tensor | None) -> Tensor:
    """`polar` as a PyTorch operator."""
    cos, sin = _directions(cos, sin, phase)
    r = F.softplus(x.to(torch.promote_types(x.dtype, cos.dtype)))
    out = _widened(x)
    cosines, sines = out.chunk(2, dim=-1)
    torch.mul(r, cos, out=cosines)
    torch.mul(r, sin, out=sines)
    return out


@to_polar.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _widened(x)


def _widened(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], 2 * x.shape[-1]))


def _directions(cos: Tensor, sin: Tensor, phase: Tensor | None) -> tuple[Tensor, Tensor]:
    """cos(θ − φ) and sin(θ − φ), to be broadcast over (b h n d).

    By the addition formulas: θ may be large, and θ − φ would lose digits of φ.
    """
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    if phase is None:
        return cos, sin
    a, b = phase.to(cos.dtype).cos()[:, None], phase.to(cos.dtype).sin()[:, None]
    return (cos * a).addcmul_(sin, b), (sin * a).addcmul_(cos, b, value=-1)


@torch.library.custom_op("xcope::to_polar_backward", mutates_args=())
def to_polar_backward(
    grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor, phase: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and of ``phase``; the latter empty where there is none."""
    cos, sin = _directions(cos, sin, phase)
    wide = torch.promote_types(x.dtype, cos.dtype)
    dcos, dsin = (g.to(wide) for g in grad.chunk(2, dim=-1))
    dr = (dcos * cos).addcmul_(dsin, sin)
    dx = torch.empty_like(x)
    torch.mul(dr, x.to(wide).sigmoid(), out=dx)
    if phase is None:
        return dx, x.new_empty(0)
    dangle = (dcos * sin).addcmul_(dsin, cos, value=-1).mul_(F.softplus(x.to(wide)))
    return dx, dangle.sum(dim=(0, 2)).to(phase.dtype)


@to_polar_backward.register_fake
def _(
    grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor, phase: Tensor | None
) -> tuple[Tensor, Tensor]:
    dphase = x.new_empty(0) if phase is None else torch.empty_like(phase)
    return torch.empty_like(x), dphase


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
    dx, dphase = to_polar_backward(grad, *ctx.saved_tensors)
    return dx, None, None, dphase if ctx.needs_input_grad[3] else None


def _save_of_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx: Any, *dgrads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, x, cos, sin, phase = ctx.saved_tensors

    def definition(x: Tensor, phase: Tensor | None) -> Tensor:
        return polar_reference(x, cos, sin, phase)

    dgrad, (dx, dphase) = second_gradients(definition, grad, (x, phase), dgrads)
    return dgrad, dx, None, None, dphase


to_polar.register_autograd(_gradients, setup_context=_save)
to_polar_backward.register_autograd(_second_gradients, setup_context=_save_of_backward)
