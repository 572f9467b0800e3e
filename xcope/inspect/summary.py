"""One line for each head: how much its gates count, what they count, how far positions reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xcope.inspect.traced import LayerTrace, Trace


@dataclass(frozen=True)
class HeadSummary:
    """A head in numbers, over all pairs of a query and a key that it sees.

    Args:
        layer: from 0.
        head: from 0.
        scheme: label of its schemes.
        mean_gate: None without CoPE, as the next two.
        counted: labels whose gates are widest open on average, with that average.
        saturated: share of pairs at the last position of the table.
        attended: labels that get most of a query's attention, with their mean share.
        distance: how many tokens attention looks back on average.
        bias: smallest and largest; None where nothing is added to the logits.
    """

    layer: int
    head: int
    scheme: str
    mean_gate: float | None
    counted: tuple[tuple[str, float], ...]
    saturated: float | None
    attended: tuple[tuple[str, float], ...]
    distance: float
    bias: tuple[float, float] | None


def summary(trace: Trace, most: int = 3) -> list[HeadSummary]:
    """Every head of every layer.

    Args:
        most: how many labels are named.
    """
    names, index = _keys(trace)
    return [
        _head(layer, number, head, names, index, most)
        for number, layer in enumerate(trace.layers)
        for head in range(len(layer.schemes))
    ]


def _keys(trace: Trace) -> tuple[list[str], Tensor]:
    """The different labels, and which of them each key has, (b j)."""
    rows = [trace.key_labels(row) for row in range(len(trace.ids))]
    names = list(dict.fromkeys(label for row in rows for label in row))
    number = {name: index for index, name in enumerate(names)}
    return names, torch.tensor([[number[label] for label in row] for row in rows])


def _head(
    layer: LayerTrace, number: int, head: int, names: Sequence[str], index: Tensor, most: int
) -> HeadSummary:
    seen, attention = layer.seen[:, head], layer.attention[:, head].float()
    of_label = torch.nn.functional.one_hot(index, len(names)).float()  # (b j labels)
    pairs = torch.einsum("bij,bjl->l", seen.float(), of_label)
    queries = seen.any(-1).sum().clamp(min=1)
    attended = torch.einsum("bij,bjl->l", attention, of_label) / queries
    i, j = seen.shape[-2:]
    distance = torch.arange(j - i, j)[:, None] - torch.arange(j)
    mean_gate = saturated = None
    counted: tuple[tuple[str, float], ...] = ()
    if layer.gates is not None and layer.saturated is not None and layer.max_pos[head] is not None:
        gates = layer.gates[:, head].float()
        opened = torch.einsum("bij,bjl->l", gates, of_label)
        counted = _top(opened / pairs.clamp(min=1), names, most)
        mean_gate = float(gates[seen].mean())
        saturated = float(layer.saturated[:, head][seen].float().mean())
    bias = None
    if layer.bias is not None:
        values = layer.bias.expand_as(layer.seen)[:, head][seen]
        bias = (float(values.min()), float(values.max()))
    return HeadSummary(
        number, head, layer.schemes[head], mean_gate, counted, saturated,
        _top(attended, names, most), float((attention * distance).sum() / queries), bias,
    )  # fmt: skip


def _top(values: Tensor, names: Sequence[str], most: int) -> tuple[tuple[str, float], ...]:
    best = values.topk(min(most, len(names)))
    return tuple((names[i], v) for v, i in zip(best.values.tolist(), best.indices, strict=True))
