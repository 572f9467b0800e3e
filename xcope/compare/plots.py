"""Pictures of a comparison: error per scheme and split, and learning curves (PNG, Agg)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from xcope.compare.plan import Run
from xcope.compare.summary import PERCENT, Summary, words
from xcope.training import RunFolder, read_metrics

COLOURS = ("#767676", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#332288")
"""Told apart by colour-blind readers too (Okabe and Ito 2008, its yellow and black replaced)."""
DASHES = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#D9D9D9"
COLUMNS = 3

Curve = tuple[Sequence[int], Sequence[float]]
"""Steps, and the training loss at each."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """The colour of each scheme, the same in every picture; they repeat after eight."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def plot_splits(summary: Summary, path: Path) -> None:
    """Draw the headline metric: a panel per split, a bar per scheme, a dot per seed."""
    columns = min(COLUMNS, len(summary.splits))
    lines = math.ceil(len(summary.splits) / columns)
    size = (1.6 + 2.8 * columns, 0.9 + lines * (0.75 + 0.36 * len(summary.rows)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, split in zip(panels, summary.splits, strict=False):
        _bars(panel, summary, split)
    for panel in panels[len(summary.splits) :]:
        panel.set_axis_off()
    for panel in panels[len(summary.splits) - columns : len(summary.splits)]:
        panel.tick_params(axis="x", labelbottom=True)
    _value_axis(panels[0], summary)
    figure.suptitle(f"{words(summary.task)}: {summary.unit} (lower is better)", color=INK)
    _save(figure, path)


def _bars(panel: Axes, summary: Summary, split: str) -> None:
    hues = colours([row.label for row in summary.rows])
    best = summary.best(split)
    for y, row in enumerate(summary.rows):
        cell, end = row.cells[split], 0.0
        if math.isfinite(cell.mean):
            panel.barh(y, cell.mean, height=0.62, color=_pale(hues[row.label]))
            spread = [y + 0.09 * (i - (len(cell.values) - 1) / 2) for i in range(len(cell.values))]
            panel.plot(
                cell.values, spread, "o", ms=4.5, color=hues[row.label], mec="white", mew=0.5,
                clip_on=False,
            )  # fmt: skip
            end = max(*cell.values, cell.mean)
        weight = "bold" if row.label in best else "normal"
        text = panel.annotate(
            summary.text(row, split), (end, y), (7, 0), textcoords="offset points"
        )
        text.set(va="center", fontsize=9, fontweight=weight, color=INK, in_layout=False)
    panel.set_title(words(split), fontsize=10.5, color=INK)
    panel.set_yticks(range(len(summary.rows)), [row.label for row in summary.rows], fontsize=10)
    panel.set_ylim(len(summary.rows) - 0.5, -0.5)
    _plain(panel)
    panel.grid(axis="x", color=FAINT, linewidth=0.6)
    panel.tick_params(axis="y", length=0)


def _value_axis(panel: Axes, summary: Summary) -> None:
    """Scale of the values, with room for the numbers beside the bars."""
    values = [v for row in summary.rows for cell in row.cells.values() for v in cell.values]
    top = max((v for v in values if math.isfinite(v) and v > 0), default=1.0)
    panel.set_xlim(0, 1.45 * top)
    panel.set_xticks([t for t in MaxNLocator(4).tick_values(0, top) if 0 <= t <= 1.1 * top])
    if summary.metric in PERCENT:
        panel.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.4g}%")


def _pale(colour: str) -> tuple[float, ...]:
    return tuple(0.5 + 0.5 * channel for channel in to_rgb(colour))


def plot_curves(summary: Summary, path: Path) -> None:
    """Draw training loss against step: a line per scheme, a thin one per seed if there are more."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    panel = figure.subplots()
    hues = colours([row.label for row in summary.rows])
    for i, row in enumerate(summary.rows):
        style = DASHES[i // len(COLOURS) % len(DASHES)]
        drawn = [curve for o in row.finished if len((curve := _curve(o.run))[0])]
        for curve in drawn if len(drawn) > 1 else ():
            panel.plot(*curve, style, color=hues[row.label], linewidth=0.7, alpha=0.4)
        if drawn:
            panel.plot(*_mean(drawn), style, color=hues[row.label], linewidth=1.9, label=row.label)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("training step")
    panel.set_ylabel("loss, nats per scored token")
    panel.set_title(f"{words(summary.task)}: training loss", color=INK)
    _plain(panel)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.margins(x=0.01)
    if panel.lines:
        figure.legend(loc="outside right upper", frameon=False)
    _save(figure, path)


def _curve(run: Run) -> Curve:
    points = read_metrics(RunFolder(run.folder).metrics)
    return [int(point["step"]) for point in points], [point["loss"] for point in points]


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, as far as the shortest curve goes."""
    steps = min((curve[0] for curve in curves), key=len)
    return steps, [
        math.fsum(losses) / len(curves) for losses in zip(*(c[1] for c in curves), strict=False)
    ]


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#999999")
    panel.tick_params(colors=INK, labelsize=9)
    panel.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=140, facecolor="white")
