"""Pictures for `report.md`: the metric of every scheme on every split (PNG, Agg)."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xcope.compare.report.palette import FAINT, INK, looks
from xcope.compare.report.wording import PERCENT, in_picture, words
from xcope.compare.stats.summary import Summary
from xcope.plotting import save_png

COLUMNS, DPI = 3, 140


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
    figure.suptitle(
        f"{in_picture(words(summary.task))}: {summary.unit} (lower is better)", color=INK
    )
    save_png(figure, path, DPI)


def _bars(panel: Axes, summary: Summary, split: str) -> None:
    hues = looks([row.label for row in summary.rows])
    marked = summary.standing(split)
    for y, row in enumerate(summary.rows):
        cell, end = row.cells[split], 0.0
        if math.isfinite(cell.mean):
            panel.barh(y, cell.mean, height=0.62, color=_pale(hues[row.label].colour))
            spread = [y + 0.09 * (i - (len(cell.values) - 1) / 2) for i in range(len(cell.values))]
            panel.plot(
                cell.values, spread, "o", ms=4.5, color=hues[row.label].colour, mec="white",
                mew=0.5, clip_on=False,
            )  # fmt: skip
            end = max(*cell.values, cell.mean)
        weight = "bold" if row.label in marked else "normal"
        text = panel.annotate(
            summary.text(row, split), (end, y), (7, 0), textcoords="offset points"
        )
        text.set(va="center", fontsize=9, fontweight=weight, color=INK, in_layout=False)
    panel.set_title(words(split), fontsize=10.5, color=INK)
    names = [in_picture(row.label) for row in summary.rows]
    panel.set_yticks(range(len(names)), names, fontsize=10)
    panel.set_ylim(len(summary.rows) - 0.5, -0.5)
    plain(panel)
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


def plain(panel: Axes) -> None:
    """No frame but two lines."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#999999")
    panel.tick_params(colors=INK, labelsize=9)
    panel.set_axisbelow(True)
