"""Pictures for `report.md`: loss over steps, the metric over length and over position (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from xcope.compare.report.curves import (
    Line,
    learning_lines,
    length_lines,
    length_splits,
    position_lines,
    position_splits,
)
from xcope.compare.report.palette import FAINT, INK, Look, looks
from xcope.compare.report.plots import COLUMNS, DPI, plain
from xcope.compare.report.wording import PERCENT, in_picture, words
from xcope.compare.stats.summary import Summary
from xcope.plotting import save_png

PANEL = (3.6, 3.2)


def plot_learning(summary: Summary, path: Path) -> None:
    """Draw training loss against step: the mean over seeds, and their range as a band."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    panel = figure.subplots()
    _draw(panel, learning_lines(summary), _looks(summary))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("training step")
    panel.set_ylabel("loss, nats per scored token")
    panel.set_title(f"{in_picture(words(summary.task))}: training loss", color=INK)
    _finish(figure, panel, path)


def plot_lengths(summary: Summary, path: Path) -> None:
    """Draw the metric against the length of the test sequences."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    panel = figure.subplots()
    lengths = list(length_splits(summary).values())
    _draw(panel, length_lines(summary), _looks(summary), marker="o")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(lengths))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    _metric_axis(panel, summary.metric)
    panel.set_xlabel("tokens per test sequence (the first: as in training)")
    panel.set_title(f"{in_picture(words(summary.task))}: {summary.unit} over length", color=INK)
    _finish(figure, panel, path)


def plot_positions(summary: Summary, path: Path) -> None:
    """Draw the metric against the position in the sequence, a panel for each split."""
    splits = position_splits(summary)
    columns = min(COLUMNS, len(splits))
    lines = -(-len(splits) // columns)
    size = (PANEL[0] * columns, 0.8 + PANEL[1] * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for panel, split in zip(panels, splits, strict=False):
        _draw(panel, position_lines(summary, split), _looks(summary))
        panel.set_title(words(split), fontsize=10.5, color=INK)
        panel.set_xlabel("position")
        plain(panel)
        panel.grid(color=FAINT, linewidth=0.6)
    # one scale for all, so it is set when all is drawn
    for panel, metric in zip(panels, splits.values(), strict=False):
        _metric_axis(panel, metric)
    for panel in panels[len(splits) :]:
        panel.set_axis_off()
    _finish(figure, panels[0], path)


def _looks(summary: Summary) -> dict[str, Look]:
    return looks([row.label for row in summary.rows])


def _draw(
    panel: Axes, lines: Sequence[Line], style: Mapping[str, Look], marker: str | None = None
) -> None:
    for one in lines:
        if not one.shown:
            continue
        look = style[one.label]
        dashes = (0, look.dashes) if look.dashes else "-"
        panel.plot(
            one.x, one.mean, linestyle=dashes, color=look.colour, linewidth=1.9,
            label=in_picture(one.label), marker=marker, ms=4,
        )  # fmt: skip
        if one.seeds > 1:
            panel.fill_between(one.x, one.low, one.high, color=look.colour, alpha=0.12, lw=0)


def _metric_axis(panel: Axes, metric: str) -> None:
    panel.set_ylim(bottom=0 if metric in PERCENT else None)
    if metric in PERCENT:
        panel.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g}%")
    panel.set_ylabel(words(metric))


def _finish(figure: Figure, panel: Axes, path: Path) -> None:
    plain(panel)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.margins(x=0.01)
    if panel.lines:
        figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_png(figure, path, DPI)
