"""Turning pairs of channels: what rotary position embeddings do to queries and keys.

Shape notation: b batch, h heads, n places, d channels of a head, m pairs.

    (x_a, x_b) ← (x_a cos − x_b sin, x_a sin + x_b cos)

Pair m is the channels (2m, 2m + 1), or (m, m + dim/2) where the layout is half-split, dim being
the number of channels that turn.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from xcope.ops.transforms import by_definition


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, half_split: bool = False) -> Tensor:
    """The first dim = 2·m channels of ``x`` turned in pairs; the others as they are.

    Low-precision ``x`` is turned in float32 and rounded once. The backward keeps only
    cos and sin, and turns the gradient back; cos and sin get no gradients.

    Args:
        x: (b h n d), d ≥ 2·m.
        cos: (n m) or (b n m), float32 or float64; a factor may have been multiplied in.
        sin: as ``cos``, with the same factor.
        half_split: pairs (m, m + dim/2), as in LLaMA and GPT-NeoX, instead of (2m, 2m + 1), as in
            x-transformers and GPT-J.

    Returns:
        (b h n d) in the dtype and memory layout of ``x``.
    """
    fused = x.device.type == "cuda" and torch.compiler.is_compiling()
    if fused or by_definition(x, cos):
        return rotate_in_operations(x, cos, sin, half_split=half_split)
    return cast(Tensor, turn_pairs(x, cos, sin, half_split))


def rotate_in_operations(
    x: Tensor, cos: Tensor, sin: Tensor, *, half_split: bool = False
) -> Tensor:
    """`rotate` in plain operations, which a compiler fuses with what comes before and after."""
    dim = 2 * cos.shape[-1]
    wide = torch.promote_types(x.dtype, cos.dtype)
    cos, sin = (t.to(wide)[:, None] if t.ndim == 3 else t.to(wide) for t in (cos, sin))
    turned = x[..., :dim].to(wide)
    a, b = turned.chunk(2, dim=-1) if half_split else (turned[..., ::2], turned[..., 1::2])
    pair = a * cos - b * sin, a * sin + b * cos
    out = torch.cat(pair, dim=-1) if half_split else torch.stack(pair, dim=-1).flatten(-2)
    return torch.cat((out.to(x.dtype), x[..., dim:]), dim=-1)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor, *, half_split: bool = False) -> Tensor:
    """The definition of `rotate`: a 2 × 2 matrix for each pair; same arguments."""
    m = cos.shape[-1]
    channels = torch.arange(2 * m, device=x.device)
    pairs = channels.view(2, m).T if half_split else channels.view(m, 2)
    matrices = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    if matrices.ndim == 5:
        matrices = matrices[:, None]
    turned = (matrices @ x[..., pairs].to(matrices.dtype)[..., None])[..., 0]
    return x.index_copy(-1, pairs.flatten(), turned.flatten(-2).to(x.dtype))


@torch.library.custom_op("xcope::turn_pairs", mutates_args=())
def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor, half_split: bool) -> Tensor:
    """`rotate` as a PyTorch operator."""
    dim, wide = 2 * cos.shape[-1], torch.promote_types(x.dtype, cos.dtype)
    cos, sin = cos.to(wide), sin.to(wide)
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    out = torch.empty_like(x)
    out[..., dim:] = x[..., dim:]

    turned, target = x[..., :dim], out[..., :dim]
    direct = x.dtype == wide
    if not half_split:  # whether neighbours in memory can be viewed as complex numbers
        for t in (turned, target):
            steps = (*t.stride()[:-1], t.storage_offset())
            direct = direct and t.stride(-1) == 1 and math.gcd(2, *steps) == 2
    if not direct:
        turned = turned.to(wide).contiguous()
        target = torch.empty_like(turned)
    if half_split:
        (a, b), (turned_a, turned_b) = turned.chunk(2, dim=-1), target.chunk(2, dim=-1)
        torch.mul(a, cos, out=turned_a).addcmul_(b, sin, value=-1)
        torch.mul(a, sin, out=turned_b).addcmul_(b, cos)
    else:  # (x_2m + i x_2m+1) · (cos + i sin): one pass over memory
        pairs = (*turned.shape[:-1], dim // 2, 2)
        z, into = torch.view_as_complex(turned.view(pairs)), target.view(pairs)
        torch.mul(z, torch.complex(cos, sin), out=torch.view_as_complex(into))
    if not direct:
        out[..., :dim] = target
    return out


@turn_pairs.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    _, cos, sin, ctx.half_split = inputs
    ctx.save_for_backward(cos, sin)


def _turn_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    cos, sin = ctx.saved_tensors
    return turn_pairs(grad, cos, -sin, ctx.half_split), None, None, None


turn_pairs.register_autograd(_turn_back, setup_context=_save)
