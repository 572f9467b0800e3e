"""Pictures of the measurements (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from xcope.benchmark.cope.curves import Point
from xcope.benchmark.cope.saturation import Saturation
from xcope.benchmark.pictures import COLOURS, INK, plain
from xcope.plotting import save_png


def plot_curves(points: Sequence[Point], path: Path) -> None:
    """Time and memory against n, both axes logarithmic."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    lengths = sorted({point.n for point in points})
    for panel, label in zip(panels, ("milliseconds", "peak memory, MiB"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_locator(LogLocator(base=4, numticks=99))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.minorticks_off()
        panel.set_xticks(lengths, [str(n) for n in lengths])
        panel.set_xlabel("n, tokens")
        panel.set_title(label, color=INK, fontsize=11)
        plain(panel)
    for colour, name in zip(COLOURS, dict.fromkeys(p.name for p in points), strict=False):
        mine = [p for p in points if p.name == name]
        n = [p.n for p in mine]
        style = {"color": colour, "marker": "o", "markersize": 4.5, "label": name}
        panels[0].plot(n, [1000 * p.seconds for p in mine], **style)
        panels[1].plot(n, [p.mebibytes for p in mine], **style)
    panels[0].legend(frameon=False, fontsize=10)
    save_png(figure, path)


def plot_saturation(found: Sequence[Saturation], path: Path) -> None:
    """Cost against the share of saturated pairs, a dot for each length of the table."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    shares = [100 * f.share for f in found]
    ratios = [f.ratio for f in found]
    panel.plot(shares, ratios, color=COLOURS[1], marker="o", markersize=5)
    panel.axhline(1, color=COLOURS[0], linewidth=1)
    panel.annotate("SDPA", (0, 1), (0, 4), textcoords="offset points", color=INK)
    for one, share in zip(found, shares, strict=True):
        text = panel.annotate(
            f"max_pos {one.max_pos}", (share, one.ratio), (7, 3), textcoords="offset points"
        )
        text.set(fontsize=9, color=INK, rotation=0 if share < 5 else 45)
    panel.set_xlim(-3, 112)
    panel.set_xticks(range(0, 101, 20))
    panel.set_ylim(0, 1.12 * max(*ratios, 1))
    panel.set_xlabel("saturated (query, key) pairs, %")
    panel.set_ylabel("time over SDPA")
    plain(panel)
    save_png(figure, path)
