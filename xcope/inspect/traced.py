"""What `xcope.inspect.trace` found: named tensors, and each head in numbers and in a notebook.

Shape notation: b batch, h query heads, i queries, j keys. Learned memories stand before the
tokens, so that queries are the last i of the keys; query ``i`` of ``n`` is key ``j_total − n + i``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor

from xcope.inspect.labels import visible

HEADS, TOKENS = 32, 40
"""What a notebook shows at most: heads, and tokens before the last query."""
HUE = "0 114 178"
"""Of a notebook's shades."""


@dataclass(frozen=True)
class LayerTrace:
    """One self-attention layer, all tensors on the CPU.

    ``attention = softmax(logits + bias)`` over the keys that are seen, unless a flag of the decoder
    gives attention another softmax.

    Args:
        schemes: label of each head's schemes, ``("cope(max_pos=64)", …)``.
        logits: scale · q·k, of turned queries and keys where a scheme turns them, (b h i j).
        seen: bool, whether the query may attend to the key, (b h i j).
        attention: (b h i j), 0 where not seen.
        bias: all that is added to the logits, by schemes and by who called the model, (b h i j), or
            (h i j) where it is the same for every row of the batch; None: nothing is added.
        gates: g_ij of schemes that have gates, as CoPE, (b h i j), 0 where not seen, NaN in heads
            without; None: no head has any.
        positions: p_ij that the gates are counted to, as ``gates``.
        max_pos: size of each head's table of positions; None in heads without.
        maps: what else schemes tell of themselves (`xcope.positions.AttendModule.trace`), each
            (b h i j), NaN in heads whose scheme has no such map.
    """

    schemes: tuple[str, ...]
    logits: Tensor
    seen: Tensor
    attention: Tensor
    bias: Tensor | None
    gates: Tensor | None
    positions: Tensor | None
    max_pos: tuple[int | None, ...]
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def saturated(self) -> Tensor | None:
        """bool (b h i j): seen keys whose position is the table's last, p_ij ≥ max_pos − 1."""
        if self.positions is None or not any(self.max_pos):
            return None
        last = torch.tensor([torch.inf if p is None else p - 1 for p in self.max_pos])
        return (self.positions >= last[:, None, None]) & self.seen

    @property
    def named(self) -> dict[str, Tensor]:
        """Name → tensor, of those that the layer has, ``maps`` included."""
        names = ("logits", "seen", "attention", "bias", "gates", "positions", "saturated")
        found = {name: getattr(self, name) for name in names}
        return {n: t for n, t in found.items() if t is not None} | dict(self.maps)

    def counts(self, head: int) -> bool:
        """Whether the head counts gates to the positions of a table, as CoPE does."""
        return self.gates is not None and self.max_pos[head] is not None

    def further_maps(self, row: int, head: int) -> dict[str, Tensor]:
        """Name → (i j), what a head's scheme tells of itself beside counting to a table."""
        maps = {} if self.counts(head) else {"gates": self.gates, "positions": self.positions}
        return {
            name: table[row, head]
            for name, table in (maps | dict(self.maps)).items()
            if table is not None and not table[row, head].isnan().all()
        }


@dataclass(frozen=True)
class Trace:
    """What a model computed on some texts; in a notebook it shows itself.

    Args:
        ids: the tokens, (b n) int64.
        labels: how each token of each text is called.
        layers: the self-attention layers, first one first.
    """

    ids: Tensor
    labels: tuple[tuple[str, ...], ...]
    layers: tuple[LayerTrace, ...]

    def key_labels(self, row: int = 0) -> tuple[str, ...]:
        """Labels of the keys of a text: ``mem1``, … for learned memories, then the tokens."""
        memories = self.layers[0].logits.shape[-1] - self.ids.shape[1]
        return (*(f"mem{m + 1}" for m in range(memories)), *self.labels[row])

    def _repr_html_(self) -> str:
        return _as_html(self)


@dataclass(frozen=True)
class HeadSummary:
    """A head in numbers, over all pairs of a query and a key that it sees.

    Args:
        layer: from 0.
        head: from 0.
        scheme: label of its schemes.
        mean_gate: None without gates.
        counted: labels whose gates are widest open on average, with that average.
        saturated: share of pairs at the last position of the table; None without one.
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
    if layer.gates is not None and not layer.gates[:, head].isnan().all():
        gates = layer.gates[:, head].float()
        opened = torch.einsum("bij,bjl->l", gates, of_label)
        counted = _top(opened / pairs.clamp(min=1), names, most)
        mean_gate = float(gates[seen].mean())
    if layer.counts(head) and layer.saturated is not None:
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


def _as_html(trace: Trace, row: int = 0) -> str:
    """A small table: a line for each head, the last query's tokens shaded."""
    heads = summary(trace)
    lines = "".join(_line(trace, one, row) for one in heads[:HEADS])
    left_out = len(heads) - HEADS
    more = f"<p>… and {left_out} more heads: see <code>trace.layers</code></p>" * (left_out > 0)
    texts, n = trace.ids.shape
    return (
        f"<p><b>Trace</b> of {texts} × {n} tokens, {len(trace.layers)} layers. The last tokens of "
        f"text {row} as its last query sees them, shaded by gate (in heads without gates by the "
        "root of attention); hold the pointer over one for its numbers.</p>"
        '<table style="font-size:12px"><thead><tr><th>layer, head</th><th>scheme</th>'
        "<th>mean gate</th><th>saturated</th><th>looks back</th><th>last query</th></tr></thead>"
        f"<tbody>{lines}</tbody></table>{more}"
    )


def _line(trace: Trace, one: HeadSummary, row: int) -> str:
    layer, labels = trace.layers[one.layer], trace.key_labels(row)
    attention = layer.attention[row, one.head, -1].float()
    shades, noted = attention.sqrt().tolist(), [("attention", ".3f", attention.tolist())]
    if layer.gates is not None and one.mean_gate is not None:
        shades = layer.gates[row, one.head, -1].tolist()
        noted = [("gate", ".2f", shades)]
    if layer.positions is not None and layer.counts(one.head):
        noted.append(("position", ".2f", layer.positions[row, one.head, -1].tolist()))
    for name, table in layer.further_maps(row, one.head).items():
        if name != "gates":
            noted.append((escape(name), ".3g", table[-1].tolist()))
    spans = []
    for key in range(max(0, len(labels) - TOKENS), len(labels)):
        shade = shades[key]
        note = ", ".join(f"{name} {values[key]:{digits}}" for name, digits, values in noted)
        # 0.7: text stays readable on the darkest shade, in light and dark notebooks
        spans.append(
            f'<span title="{note}" style="background:rgb({HUE}/{0.7 * shade:.2f});'
            f'padding:0 2px;margin:1px">{escape(visible(labels[key]))}</span>'
        )
    numbers = "".join(
        f"<td>{'–' if value is None else format(value, '.2f')}</td>"
        for value in (one.mean_gate, one.saturated)
    )
    return (
        f"<tr><td>{one.layer}, {one.head}</td><td>{escape(one.scheme)}</td>{numbers}"
        f"<td>{one.distance:.1f} tokens</td>"
        f'<td style="text-align:left;font-family:monospace">{"".join(spans)}</td></tr>'
    )
