"""A picture of a trace: layers × heads of gates, or of attention, bias and what a scheme tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from xcope.inspect.labels import visible
from xcope.inspect.traced import LayerTrace, Trace
from xcope.plotting import INK, ORANGE, colour_bar, save_png

# inches
LABEL = 0.115  # that the label of a key needs; where it does not fit, axes have numbers
WIDEST = 24.0  # of all panels together
GAP, TITLE, BAR = 0.3, 0.4, 0.7


@dataclass(frozen=True)
class Block:
    """One kind of number, for the heads that have it.

    Args:
        title: what it is.
        table: of a head, (i j); None where the head has none.
        cmap: colours.
        norm: from number to colour, the same for all heads; None: each head has its own.
    """

    title: str
    table: Callable[[LayerTrace, int], Tensor | None]
    cmap: str
    norm: Normalize | None


@dataclass(frozen=True)
class Sheet:
    """Where panels lie, in inches, and the figure.

    Args:
        size: width and height of the figure.
        side: of a panel.
        margin: for the labels of queries, and for those of keys.
        labelled: whether axes have labels rather than numbers.
    """

    figure: Figure
    size: tuple[float, float]
    side: float
    margin: float
    labelled: bool

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner is so far from that of the figure."""
        w, h = self.size
        return self.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))

    def text(self, top: float, words: str, size: float) -> None:
        """Words from the left margin on."""
        at = (self.margin / self.size[0], 1 - top / self.size[1])
        self.figure.text(*at, words, fontsize=size, color=INK, va="top")


def picture(trace: Trace, path: Path | str, row: int = 0, title: str = "") -> None:
    """Write a PNG: gates, with the line where positions saturate; else attention and bias.

    What else schemes tell of themselves (`LayerTrace.maps`) follows under its own name.

    Args:
        row: which text of the batch.
        title: heading.
    """
    blocks = [
        (block, there) for block in _blocks(trace, row) if (there := _layers_of(block, trace))
    ]
    columns = max(len(layer.schemes) for layer in trace.layers)
    keys = trace.layers[0].logits.shape[-1]
    labelled = LABEL * keys * columns <= WIDEST
    side = max(1.7, LABEL * keys) if labelled else min(2.2, WIDEST / columns)
    longest = max(map(len, _labels(trace, row))) if labelled else 3
    margin = 0.4 + 0.075 * longest
    heights = [TITLE + len(there) * (side + GAP) + margin for _, there in blocks]
    top = TITLE * bool(title)
    size = (margin + columns * (side + GAP) + BAR, top + sum(heights))
    sheet = Sheet(Figure(figsize=size), size, side, margin, labelled)
    sheet.text(0.1, title, 12)
    for (block, there), height in zip(blocks, heights, strict=True):
        _draw(sheet, top, trace, block, there, row)
        top += height
    save_png(sheet.figure, path)


def _blocks(trace: Trace, row: int) -> list[Block]:
    def gates(layer: LayerTrace, head: int) -> Tensor | None:
        if layer.gates is None or not layer.counts(head):
            return None
        return layer.gates[row, head]

    def attention(layer: LayerTrace, head: int) -> Tensor | None:
        return None if layer.counts(head) else layer.attention[row, head]

    def bias(layer: LayerTrace, head: int) -> Tensor | None:
        if layer.bias is None or layer.counts(head):
            return None
        return (layer.bias[row] if layer.bias.ndim == 4 else layer.bias)[head]

    def further(name: str, layer: LayerTrace, head: int) -> Tensor | None:
        return layer.further_maps(row, head).get(name)

    names = dict.fromkeys(
        name
        for layer in trace.layers
        for head in range(len(layer.schemes))
        for name in layer.further_maps(row, head)
    )
    counted = "gates: what each query counts; left of the line, positions are the table's last"
    return [
        Block(counted, gates, "Blues", Normalize(0, 1)),
        Block("attention", attention, "Purples", PowerNorm(0.5, 0, 1)),
        Block("bias: what is added to the logits", bias, "PuOr_r", None),
        *(Block(name, partial(further, name), "PuOr_r", None) for name in names),
    ]


def _layers_of(block: Block, trace: Trace) -> list[int]:
    """The layers that have such numbers."""
    return [
        number
        for number, layer in enumerate(trace.layers)
        if any(block.table(layer, head) is not None for head in range(len(layer.schemes)))
    ]


def _draw(sheet: Sheet, top: float, trace: Trace, block: Block, there: list[int], row: int) -> None:
    """All heads that have such numbers, a line for each layer."""
    sheet.text(top + 0.05, block.title, 9.5)
    step, top = sheet.side + GAP, top + TITLE + GAP / 2
    begun: set[int] = set()
    image = None
    for line, number in reversed(list(enumerate(there))):
        layer = trace.layers[number]
        tables = {head: block.table(layer, head) for head in range(len(layer.schemes))}
        drawn = {head: table for head, table in tables.items() if table is not None}
        for head, table in drawn.items():
            left, above = sheet.margin + head * step, top + line * step
            axes = sheet.axes(left, above, sheet.side, sheet.side)
            image = _panel(axes, block, layer, row, head, table)
            spread = "" if block.norm is not None else f", ±{image.get_clim()[1]:.3g}"
            name = f"layer {number}, head {head}{spread}: {layer.schemes[head]}"
            axes.set_title(name[: int(sheet.side * 15)], fontsize=8, color=INK, pad=3)
            # the lowest panel of a column has the keys' labels, the first of a line the queries'
            queries = head == min(drawn)
            _label(axes, sheet, trace, row, keys=head not in begun, queries=queries)
            begun.add(head)
    if block.norm is not None and image is not None:
        left, height = sheet.size[0] - BAR, min(len(there) * step - GAP, 3)
        bar = sheet.axes(left, top, 0.12, height)
        colour_bar(sheet.figure, image, cax=bar)


def _panel(
    axes: Axes, block: Block, layer: LayerTrace, row: int, head: int, table: Tensor
) -> AxesImage:
    seen = layer.seen[row, head].numpy()
    values = np.ma.masked_invalid(np.where(seen, table.double().numpy(), np.nan))
    norm = block.norm
    if norm is None:
        most = float(np.abs(values).max()) or 1.0
        norm = Normalize(-most, most)
    image = axes.imshow(values, cmap=block.cmap, norm=norm, interpolation="nearest", aspect="auto")
    axes.spines[:].set_color("#BBBBBB")
    if layer.saturated is not None and layer.counts(head):
        full = layer.saturated[row, head].numpy()
        ends = np.where(full.any(-1), full.shape[-1] - full[:, ::-1].argmax(-1), 0) - 0.5
        if full.any():
            axes.stairs(
                ends, np.arange(len(ends) + 1) - 0.5, orientation="horizontal", baseline=None,
                color=ORANGE, linewidth=min(0.9, 60 / len(ends)),
            )  # fmt: skip
    return image


def _label(axes: Axes, sheet: Sheet, trace: Trace, row: int, *, keys: bool, queries: bool) -> None:
    axes.tick_params(colors=INK, labelsize=7, length=2)
    labels = _labels(trace, row)
    size = trace.layers[0].seen.shape[-2]
    for wanted, axis, shown, word in (
        (keys, axes.xaxis, labels, "key"),
        (queries, axes.yaxis, labels[len(labels) - size :], "query"),
    ):
        if not wanted:
            axis.set_ticks([])
            continue
        axis.set_label_text(word, fontsize=8, color=INK)
        if sheet.labelled:
            axis.set_ticks(range(len(shown)), shown, fontsize=6.5, family="monospace")
            axis.set_tick_params(labelrotation=90 if word == "key" else 0)
        else:
            axis.set_major_locator(MaxNLocator(4, integer=True))


def _labels(trace: Trace, row: int, most: int = 14) -> list[str]:
    labels = map(visible, trace.key_labels(row))
    return [label if len(label) <= most else label[: most - 1] + "…" for label in labels]
