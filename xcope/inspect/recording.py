"""Hooks that note what each attention layer computes, while it computes it.

Attention runs with its logits materialised (`xcope.modules.seam.logits_kept`); what is kept is
what it worked with. Only gates, and biases of places, are computed a second time, from the same
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.inspect.traced import LayerTrace
from xcope.modules import seam
from xcope.modules.attention import LayerCall, Part, bias_of
from xcope.positions import Plan
from xcope.positions.cope import CoPE


@dataclass(frozen=True)
class Counted:
    """What CoPE did with a group of heads; each (b h i j)."""

    gates: Tensor
    positions: Tensor
    bias: Tensor


@contextmanager
def recorded(model: Any) -> Iterator[list[LayerTrace]]:
    """Within, every call of a self-attention layer adds its trace to the list."""
    layers: list[LayerTrace] = []
    plan: Plan = model.plan
    with ExitStack() as stack:
        stack.enter_context(seam.logits_kept(model.attn_layers))
        for index, attention in enumerate(seam.self_attentions(model.attn_layers)):
            attend = attention.attend
            counted: dict[nn.Module, Counted] = {}
            for part in attend.parts:
                if isinstance(part.attend, CoPE):
                    stack.enter_context(_hook(part.attend, _cope_hook(counted)))
            schemes = labels_of_heads(plan, index, attend.parts)
            stack.enter_context(_hook(attend, _attend_hook(layers, schemes, counted)))
        yield layers


@contextmanager
def _hook(module: nn.Module, function: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(function, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def labels_of_heads(plan: Plan, index: int, parts: Sequence[Part]) -> tuple[str, ...]:
    """The schemes of each head of attention layer ``index``, in the order of its heads."""
    groups = dict.fromkeys(plan.layers[index % len(plan.layers)])
    labels = [Plan(((group,),)).label() for group in groups]
    return tuple(
        label for label, part in zip(labels, parts, strict=True) for _ in range(part.heads)
    )


def _cope_hook(counted: dict[nn.Module, Counted]) -> Callable[..., None]:
    def hook(cope: CoPE, args: Any, kwargs: Any, bias: Tensor) -> None:
        counted[cope] = Counted(**cope.trace(*args), bias=bias)

    return hook


def _attend_hook(
    layers: list[LayerTrace], schemes: tuple[str, ...], counted: dict[nn.Module, Counted]
) -> Callable[..., None]:
    def hook(attend: Any, args: Any, kwargs: Any, output: Any) -> None:
        _, inter = output
        logits = inter.qk_similarities
        j = logits.shape[-1]
        # a learned sink stands before the keys
        seen = inter.pre_softmax_attn[..., -j:] > torch.finfo(logits.dtype).min / 2
        attention = inter.post_softmax_attn[..., -j:].masked_fill(~seen, 0.0)
        parts: tuple[Part, ...] = attend.parts
        found = [counted.pop(part.attend) if part.attend in counted else None for part in parts]
        call = seam.call_of(kwargs)
        bias = _bias(parts, call, found, logits)
        gates = _of_heads(parts, [None if one is None else one.gates for one in found], torch.nan)
        pos = _of_heads(parts, [None if one is None else one.positions for one in found], torch.nan)
        tables = [getattr(part.attend, "max_pos", None) for part in parts]
        max_pos = tuple(
            size for part, size in zip(parts, tables, strict=True) for _ in range(part.heads)
        )
        bias, gates, pos = (None if t is None else t.cpu() for t in (bias, gates, pos))
        layers.append(
            LayerTrace(
                schemes, logits.cpu(), seen.cpu(), attention.cpu(), bias, gates, pos, max_pos
            )
        )

    return hook


def _bias(
    parts: Sequence[Part], call: Any, found: Sequence[Counted | None], logits: Tensor
) -> Tensor | None:
    """All that is added to the logits (b h i j); without b where it is the same for all."""
    i, j = logits.shape[-2:]
    counted = _of_heads(parts, [None if one is None else one.bias for one in found], 0.0)
    if not isinstance(call, LayerCall):
        return counted
    bias = _sum(bias_of(parts, call, i, j), counted)
    if call.bias is None:
        return bias
    # what the caller added does not know of x-transformers' key of zeros before the others
    return _sum(bias, F.pad(call.bias, (j - call.bias.shape[-1], 0)).expand_as(logits))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _of_heads(
    parts: Sequence[Part], pieces: Sequence[Tensor | None], without: float
) -> Tensor | None:
    """(… h i j) of each group as one tensor, ``without`` in groups that have none."""
    given = [piece for piece in pieces if piece is not None]
    if not given:
        return None
    widest = max(given, key=lambda piece: piece.ndim)
    batch, size = widest.shape[:-3], widest.shape[-2:]
    empty = widest.new_full((), without)
    return torch.cat(
        [
            (empty if piece is None else piece).expand(*batch, part.heads, *size)
            for part, piece in zip(parts, pieces, strict=True)
        ],
        dim=-3,
    )
