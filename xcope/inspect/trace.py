"""Run a model once and keep what its attention computed.

Attention runs with its logits materialised (`xcope.modules.seam.logits_kept`), and hooks note what
each layer works with. Only biases of places, and what schemes tell of themselves, are computed a
second time, from the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.inspect.traced import LayerTrace, Trace
from xcope.modules import AutoregressiveWrapper, Decoder, TransformerWrapper, seam
from xcope.modules.attention import LayerCall, Part, bias_of, turned, with_heads
from xcope.ops.inputs import require
from xcope.positions import AttendInputs, Plan


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


Noted = dict[nn.Module, tuple[Any, Tensor]]
"""Module of the attend slot → what it was called with, and what it gave back."""


@contextmanager
def recorded(model: Any) -> Iterator[list[LayerTrace]]:
    """Within, every call of a self-attention layer adds its trace to the list."""
    layers: list[LayerTrace] = []
    with ExitStack() as stack:
        stack.enter_context(seam.logits_kept(model.attn_layers))
        for index, attention in enumerate(seam.self_attentions(model.attn_layers)):
            parts, noted = attention.attend.parts, Noted()
            for part in parts:
                if part.attend is not None:
                    hook = part.attend.register_forward_hook(partial(_note, noted))
                    stack.callback(hook.remove)
            schemes = schemes_of_heads(model.plan, index, parts)

            def keep(watched: seam.Watched, of: Any = (schemes, parts, noted)) -> None:
                layers.append(_layer(watched, *of))

            stack.enter_context(seam.watched(attention, keep))
        yield layers


def schemes_of_heads(plan: Plan, index: int, parts: Sequence[Part]) -> tuple[str, ...]:
    """The schemes of each head of attention layer ``index``, in the order of its heads."""
    groups = dict.fromkeys(plan.layers[index % len(plan.layers)])
    labels = [Plan(((group,),)).label() for group in groups]
    return tuple(
        label for label, part in zip(labels, parts, strict=True) for _ in range(part.heads)
    )


def _note(noted: Noted, module: nn.Module, args: Any, added: Tensor) -> None:
    if len(args) == 4:  # x-transformers asks what it knows by name with fewer, for nothing
        noted[module] = args, added


def _layer(
    watched: seam.Watched, schemes: tuple[str, ...], parts: Sequence[Part], noted: Noted
) -> LayerTrace:
    """The trace of one call of a layer."""
    call, logits, seen = watched.call, watched.logits, watched.seen
    added: list[Tensor | None] = []
    for part in parts:
        bias = noted[part.attend][1] if part.attend in noted else None
        # a scheme may add the same to all rows, or heads
        shape = (len(logits), part.heads, *(() if bias is None else bias.shape[-2:]))
        added.append(None if bias is None else bias.expand(shape))
    told: list[dict[str, Tensor]] = []
    for index, (part, heads) in enumerate(with_heads(parts)):
        left, placing = call.left(index)
        told.append({} if placing is None else _of_places(part, call, placing, seen[:, heads]))
        if part.attend is None:
            continue
        if part.attend in noted:
            given, _ = noted[part.attend]
        else:  # the layer wrote out what it adds, see `AttendModule.terms`
            q = watched.q[:, heads]
            keys = q.new_zeros(*q.shape[:2], watched.keys, q.shape[3])
            q, *_ = turned(part, call, q, keys, None, placing=placing)
            inputs = AttendInputs(scale=q.shape[-1] ** -0.5, remembered=left)
            given = (q, logits[:, heads], seen[:, heads], inputs.written_out(q, logits.shape[-1]))
        told[-1] |= part.attend.trace(*given)
    noted.clear()
    names = dict.fromkeys(name for maps in told for name in maps)
    maps = {name: _of_heads(parts, [maps.get(name) for maps in told], torch.nan) for name in names}
    tables = [
        getattr(part.attend, "max_pos", None) if "positions" in its else None
        for part, its in zip(parts, told, strict=True)
    ]
    return LayerTrace(
        schemes,
        logits.cpu(),
        seen.cpu(),
        watched.attention.cpu(),
        _bias(parts, call, added, logits),
        gates=maps.pop("gates", None),
        positions=maps.pop("positions", None),
        max_pos=tuple(
            size for part, size in zip(parts, tables, strict=True) for _ in range(part.heads)
        ),
        maps=maps,
    )


def _of_places(part: Part, call: LayerCall, placing: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """What a rotation tells of places that tokens have; each (b h i j), 0 where not seen."""
    if part.rotation is None:
        return {}
    (i, j), found = seen.shape[-2:], {}
    for name, table in part.rotation.trace(placing, call.places.documents).items():
        # learned memories have no place
        placed = F.pad(table[:, :, -i:], (j - table.shape[-1], 0))
        found[name] = placed.expand_as(seen).masked_fill(~seen, 0.0)
    return found


def _bias(
    parts: Sequence[Part], call: LayerCall, added: Sequence[Tensor | None], logits: Tensor
) -> Tensor | None:
    """All that is added to the logits, (b h i j), or (h i j) where it is the same for all."""
    i, j = logits.shape[-2:]
    biases = [bias_of(parts, call, i, j)]
    if any(piece is not None for piece in added):
        biases.append(_of_heads(parts, added, 0.0))
    if call.bias is not None:
        # it does not know of x-transformers' key of zeros before the others
        biases.append(F.pad(call.bias, (j - call.bias.shape[-1], 0)).expand_as(logits))
    given = [bias.cpu() for bias in biases if bias is not None]
    return sum(given[1:], given[0]) if given else None


def _of_heads(parts: Sequence[Part], pieces: Sequence[Tensor | None], without: float) -> Tensor:
    """(b h i j) of each group as one tensor on the CPU, ``without`` in groups that have none."""
    given = next(piece for piece in pieces if piece is not None)
    (b, _, i, j), floating = given.shape, given.is_floating_point()
    empty = torch.tensor(without, dtype=given.dtype if floating else torch.float32)
    return torch.cat(
        [
            (empty if piece is None else piece.cpu()).expand(b, part.heads, i, j)
            for part, piece in zip(parts, pieces, strict=True)
        ],
        dim=1,
    )
