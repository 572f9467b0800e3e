"""Run a model once and keep what its attention computed.

Attention runs with its logits materialised (`xcope.modules.seam.logits_kept`), and hooks note what
each layer worked with. Only gates, and biases of places, are computed a second time, from the same
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

from xcope.inspect.traced import LayerTrace, Trace
from xcope.modules import AutoregressiveWrapper, Decoder, TransformerWrapper, seam
from xcope.modules.attend import Call, Part, dense_of
from xcope.ops.cope import positions
from xcope.ops.inputs import require
from xcope.positions import Plan
from xcope.positions.cope import CoPE


@torch.no_grad()
def trace(
    model: TransformerWrapper | AutoregressiveWrapper,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    labels: Sequence[Any] | None = None,
) -> Trace:
    """Gates, positions, biases and attention of every self-attention layer.

    The model runs once, in evaluation mode, with its logits materialised: (b h n n) for each
    layer are held in memory.

    Args:
        model: any scheme, also several in one stack.
        ids: tokens, (b n) or (n), int64.
        mask: bool, as ``ids``; False where padded.
        labels: how the tokens are called, as ``ids``; None: by their number.
            `xcope.inspect.token_labels` asks a task.

    Raises:
        FlagError: a model, ids, mask or labels that do not fit.
    """
    if isinstance(model, AutoregressiveWrapper):
        model = model.net
    _check_model(model)
    ids = torch.as_tensor(ids)
    if ids.ndim == 1:
        ids, mask = ids[None], None if mask is None else mask[None]
        labels = None if labels is None else [tuple(labels)]
    _check_ids(ids, mask, model.num_tokens)
    called = _labels(labels, ids)
    device = next(model.parameters()).device
    with _evaluating(model), recorded(model) as layers:
        model(ids.to(device), mask=None if mask is None else mask.to(device))
    return Trace(ids.cpu(), called, tuple(layers))


def _check_model(model: Any) -> None:
    require(
        isinstance(model, TransformerWrapper) and isinstance(model.attn_layers, Decoder),
        "model",
        f"model must be xcope's TransformerWrapper with its Decoder, not a {type(model).__name__}",
    )
    every = getattr(model, "memory_tokens_interspersed_every", None)
    require(
        every is None,
        "memory_tokens_interspersed_every",
        f"memory_tokens_interspersed_every={every}: a model that strews memories among its tokens "
        "cannot be traced",
    )


def _check_ids(ids: Tensor, mask: Tensor | None, num_tokens: int) -> None:
    require(
        ids.ndim == 2 and ids.numel() > 0 and not ids.is_floating_point(),
        "ids",
        f"ids must be whole numbers (b n) or (n), but are {ids.dtype} {tuple(ids.shape)}",
    )
    least, most = int(ids.min()), int(ids.max())
    require(
        least >= 0 and most < num_tokens,
        "ids",
        f"ids must be tokens 0 … {num_tokens - 1}, but go from {least} to {most}",
    )
    require(
        mask is None or (mask.dtype == torch.bool and mask.shape == ids.shape),
        "mask",
        f"mask must be bool and have the shape of ids, {tuple(ids.shape)}",
    )


def _labels(labels: Any, ids: Tensor) -> tuple[tuple[str, ...], ...]:
    if labels is None:
        return tuple(tuple(map(str, row)) for row in ids.tolist())
    rows = tuple(tuple(row) for row in labels)
    require(
        [len(row) for row in rows] == [ids.shape[1]] * len(ids),
        "labels",
        f"labels must be as many as the tokens, {tuple(ids.shape)}",
    )
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; then every module is as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


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
                if part.cope is not None:
                    stack.enter_context(_hook(part.cope, _cope_hook(counted)))
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
        gates = gates_of(cope, *args)
        counted[cope] = Counted(gates, positions(gates, cope.max_pos), bias)

    return hook


def gates_of(cope: CoPE, query: Tensor, attn_logits: Tensor) -> Tensor:
    """g_ij as `CoPE.forward` makes them from the same arguments, (b h i j)."""
    logits, seen = cope.gate_logits(query, attn_logits)
    return logits.sigmoid().masked_fill(~seen, 0.0)


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
        found = [None if part.cope is None else counted.pop(part.cope) for part in parts]
        call = seam.call_of(kwargs.get("flash_pack_seq_kwargs"), kwargs.get("attn_bias"))
        bias = _bias(parts, call, found, logits)
        gates = _of_heads(parts, [None if one is None else one.gates for one in found], torch.nan)
        pos = _of_heads(parts, [None if one is None else one.positions for one in found], torch.nan)
        tables = [None if part.cope is None else part.cope.max_pos for part in parts]
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
    placed = isinstance(call, Call)
    pieces = [
        _sum(dense_of(part, call, i, j) if placed else None, None if one is None else one.bias)
        for part, one in zip(parts, found, strict=True)
    ]
    bias = _of_heads(parts, pieces, 0.0)
    if not placed or call.bias is None:
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
