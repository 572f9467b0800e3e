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
    if _fused_by_others(x, cos):
        return rotate_in_operations(x, cos, sin, half_split=half_split)
    return cast(Tensor, turn_pairs(x, cos, sin, half_split))


def rotate_by(
    x: Tensor, places: Tensor, freq: Tensor | None = None, *, half_split: bool = False
) -> Tensor:
    """`rotate` by the angles places · freq, less whole turns; places and freq get gradients.

    The backward keeps places and the turned channels, which attention keeps anyway. Angles are
    made of some heads at a time.

    Args:
        x: as for `rotate`.
        places: (b h n c), or (b 1 n c) for all heads; b may be 1. c = m, or 1 for all pairs.
            float32 or float64, in which they are multiplied.
        freq: (m); None: ``places``, with c = m, are the angles.
        half_split: as for `rotate`.
    """
    if _fused_by_others(x, places, freq):
        angles = _angles(places, freq, torch.promote_types(x.dtype, torch.float32))
        return rotate_in_operations(x, angles.cos(), angles.sin(), half_split=half_split)
    return cast(Tensor, turn_by_places(x, places, freq, half_split, False))


def _fused_by_others(x: Tensor, *turn: Tensor | None) -> bool:
    """Whether plain operations are wanted: a compiler fuses them, or a transform differentiates."""
    fused = x.device.type == "cuda" and torch.compiler.is_compiling()
    return fused or by_definition(x, *turn)


def angles_of(places: Tensor, freq: Tensor, dtype: torch.dtype) -> Tensor:
    """places · freq less whole turns, which are told off in the dtype of ``places``.

    Args:
        places: (… c), c = m or 1.
        freq: (m).
        dtype: of the angles.

    Returns:
        (… m), between −2π and 2π.
    """
    turns = places * (freq.to(places.dtype) / (2 * math.pi))
    return (turns.frac() * (2 * math.pi)).to(dtype)


def _angles(places: Tensor, freq: Tensor | None, dtype: torch.dtype) -> Tensor:
    return places.to(dtype) if freq is None else angles_of(places, freq, dtype)


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
    if matrices.ndim == 5:  # (b n m 2 2), the same for all heads
        matrices = matrices[:, None]
    turned = (matrices @ x[..., pairs].to(matrices.dtype)[..., None])[..., 0]
    return x.index_copy(-1, pairs.flatten(), turned.flatten(-2).to(x.dtype))


@torch.library.custom_op("xcope::turn_pairs", mutates_args=())
def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor, half_split: bool) -> Tensor:
    """`rotate` as a PyTorch operator."""
    out = torch.empty_like(x)
    _turn_into(out, x, cos, sin, half_split)
    return out


def _turn_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, half_split: bool) -> None:
    dim, wide = 2 * cos.shape[-1], torch.promote_types(x.dtype, cos.dtype)
    cos, sin = cos.to(wide), sin.to(wide)
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
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


ANGLES_AT_ONCE = 2**18
"""Of how many pairs angles may be held within a call."""


def _some_heads(x: Tensor, places: Tensor, pairs: int) -> list[slice]:
    """Heads whose angles are made together; all, where these are the same for all."""
    b, h, n, _ = x.shape
    if places.shape[1] == 1 or torch.compiler.is_compiling():
        return [slice(0, h)]
    at_once = max(1, ANGLES_AT_ONCE // max(1, b * n * pairs))
    return [slice(first, min(first + at_once, h)) for first in range(0, h, at_once)]


@torch.library.custom_op("xcope::turn_by_places", mutates_args=())
def turn_by_places(
    x: Tensor, places: Tensor, freq: Tensor | None, half_split: bool, back: bool
) -> Tensor:
    """`rotate_by` as a PyTorch operator; ``back``: the other way round."""
    out, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
    for heads in _some_heads(x, places, places.shape[-1] if freq is None else len(freq)):
        own = places if places.shape[1] == 1 else places[:, heads]
        angles = _angles(own, freq, wide)
        cos, sin = angles.cos(), angles.sin()
        _turn_into(out[:, heads], x[:, heads], cos, sin.neg_() if back else sin, half_split)
    return out


@turn_by_places.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _save_turned(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool, bool], output: Tensor
) -> None:
    _, places, freq, ctx.half_split, ctx.back = inputs
    ctx.save_for_backward(output, places, freq)


def _turn_back_by_places(
    ctx: Any, grad: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
    out, places, freq = ctx.saved_tensors
    dplaces, dfreq = [], None
    m = places.shape[-1] if freq is None else len(freq)
    wide = torch.promote_types(out.dtype, torch.float32)
    for heads in _some_heads(out, places, m) if any(ctx.needs_input_grad[1:3]) else []:
        # d/dθ of a turned pair (a, b) is (−b, a)
        pairs: list[Tensor] = []
        for whole in (grad, out) if ctx.back else (out, grad):
            t = whole[:, heads, :, : 2 * m].to(wide)
            pairs += t.chunk(2, dim=-1) if ctx.half_split else (t[..., ::2], t[..., 1::2])
        a, b, grad_a, grad_b = pairs
        dangles = (a * grad_b).addcmul_(b, grad_a, value=-1)
        own = places if places.shape[1] == 1 else places[:, heads]
        if places.shape[1] == 1:
            dangles = dangles.sum(1, keepdim=True)
        if freq is None:
            dplaces.append(dangles.to(places.dtype))
            continue
        dangles = dangles.to(places.dtype)
        if ctx.needs_input_grad[2]:
            some = (dangles * own).sum((0, 1, 2)).to(freq.dtype)
            dfreq = some if dfreq is None else dfreq + some
        by_freq = dangles * freq.to(places.dtype)
        dplaces.append(by_freq.sum(-1, keepdim=True) if places.shape[-1] == 1 else by_freq)
    moved = torch.cat(dplaces, dim=1).sum_to_size(places.shape) if dplaces else None
    return (
        turn_by_places(grad, places, freq, ctx.half_split, not ctx.back),
        moved,
        dfreq,
        None,
        None,
    )


turn_by_places.register_autograd(_turn_back_by_places, setup_context=_save_turned)
