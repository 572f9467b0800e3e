"""How every picture is written: PNG on white, its text as it stands."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def save(figure: Figure, path: Path | str, dpi: int = 130) -> None:
    """Write a figure; ``$`` in a label is a dollar sign and begins no formula.

    A letter that the fonts lack is drawn as a box, without a warning for each.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(path, dpi=dpi, facecolor="white")
