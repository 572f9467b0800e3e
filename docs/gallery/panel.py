"""One diagram of a scheme, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from xcope.plotting import INK, colour_bar, plain

SIGNED, RISING = "PuOr", "cividis"
"""Colour maps that colour-blind readers can tell apart."""
MAX_DISTANCE = 4096
MOST_TICKS = 12


@dataclass(frozen=True)
class Panel:
    """One diagram of a scheme.

    Args:
        title: what it shows.
        draw: draws it, without its title.
        x: what runs to the right.
        y: what runs upwards, or downwards in images.
        wide: how much wider than others.
    """

    title: str
    draw: Callable[[Axes], None]
    x: str = ""
    y: str = ""
    wide: float = 1.0


def show(panel: Panel, axes: Axes) -> None:
    """Draw the panel with its title and labels."""
    plain(axes)
    panel.draw(axes)
    axes.set_title(panel.title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(panel.x, fontsize=9, color=INK)
    axes.set_ylabel(panel.y, fontsize=9, color=INK)


def show_small(panel: Panel, axes: Axes) -> None:
    """Draw the panel as a thumbnail: no labels, small numbers."""
    plain(axes)
    panel.draw(axes)
    legend_there = axes.get_legend()
    if legend_there is not None:
        legend_there.remove()
    axes.tick_params(labelsize=6.5, length=2)
    if len(axes.get_xticks()) > MOST_TICKS:  # the letters of a sentence
        axes.set_xticks([])
        axes.set_yticks([])
    elif axes.get_xscale() != "linear":
        axes.set_xticks(axes.get_xticks()[::2], [t.get_text() for t in axes.get_xticklabels()[::2]])


def log_distance(axes: Axes, last: int = MAX_DISTANCE) -> None:
    """Distances 0, 1, 2, 4, … to ``last`` along the x axis."""
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xlim(0, last)
    ticks = [0, 1, *(4**n for n in range(1, 7) if 4**n <= last)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def scale(axes: Axes, image: ScalarMappable, numbers: str | None = None) -> None:
    """What the colours mean, beside the axes.

    Args:
        numbers: how they are written, ``"%g"``; None: as matplotlib does.
    """
    figure = axes.get_figure(root=True)
    if figure is not None:
        colour_bar(figure, image, ax=axes, shrink=0.8, pad=0.02, format=numbers)


def shades(n: int) -> Sequence[tuple[float, ...]]:
    """n colours from dark to light, for the heads."""
    return [matplotlib.colormaps[RISING](0.92 * index / max(n - 1, 1)) for index in range(n)]


def legend(axes: Axes, columns: int = 1, where: str = "best") -> None:
    """Names of the lines."""
    look: dict[str, Any] = {
        "loc": where, "ncols": columns, "edgecolor": "none", "framealpha": 0.8, "fontsize": 8,
        "handlelength": 1.4, "columnspacing": 1.0, "labelspacing": 0.3,
    }  # fmt: skip
    axes.legend(**look)
