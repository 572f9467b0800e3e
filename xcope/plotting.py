"""The look of every picture, and how it is written.

A picture is a `matplotlib.figure.Figure` of its own; nothing here touches pyplot and its global
state, so pictures can be drawn in any thread and without a display.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.text import Text

GREY, BLUE, ORANGE, GREEN = "#767676", "#0072B2", "#D55E00", "#009E73"
INK, FAINT = "#222222", "#D9D9D9"
"""Of text, and of the grid."""
COLOURS = (GREY, "#E69F00", BLUE, "#CC79A7", GREEN, "#56B4E9", ORANGE, "#332288")
"""Of series. Colour-blind readers can tell them apart (Okabe and Ito 2008, its yellow and black
replaced)."""
DASHES = ((), (6.0, 3.0), (2.0, 2.0), (7.0, 2.0, 2.0, 2.0))
"""Lengths of strokes and gaps; none for a solid line."""


@dataclass(frozen=True)
class Look:
    """Colour and dashes of one series, the same in every picture."""

    colour: str
    dashes: tuple[float, ...]

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot``."""
        return {"color": self.colour, "linestyle": (0, self.dashes) if self.dashes else "-"}


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each series; colours repeat after eight, with other dashes."""
    return {
        label: Look(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, label in enumerate(labels)
    }


def plain(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw only the left and the bottom line of the frame, and a faint grid under the data.

    Args:
        grid: the axis whose ticks have grid lines.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def colour_bar(figure: Figure, image: ScalarMappable, **where: Any) -> None:
    """Draw what the colours of an image mean.

    Args:
        where: keywords of ``Figure.colorbar``: ``ax`` to take room from, or ``cax`` to fill.
    """
    bar = figure.colorbar(image, **where)
    bar.ax.tick_params(labelsize=7.5, colors=INK)
    bar.outline.set_visible(False)


def save_png(figure: Figure, path: Path | str, dpi: int = 130) -> None:
    """Write a figure as PNG on white.

    ``$`` in a label is a dollar sign and begins no formula. A letter that the fonts lack is drawn
    as a box, without a warning for each.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(path, dpi=dpi, facecolor="white")
