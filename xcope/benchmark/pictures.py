"""How all pictures look (PNG)."""

from __future__ import annotations

from matplotlib.axes import Axes

COLOURS = ("#767676", "#0072B2", "#D55E00")
INK, FAINT = "#222222", "#D9D9D9"


def plain(panel: Axes) -> None:
    """No frame but two lines, and a faint grid behind."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#999999")
    panel.tick_params(colors=INK, labelsize=9)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
