"""Time and memory against the length (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator

from xcope.benchmark.gpu.figures import MILLISECONDS, Figure
from xcope.benchmark.pictures import COLOURS, INK, plain
from xcope.plotting import save_png

FOUR = (*COLOURS, "#009E73")


def plot_curve(figures: Sequence[Figure], path: Path) -> None:
    """A line for each contender, both axes logarithmic."""
    canvas = Canvas(figsize=(10, 4.4), layout="constrained")
    time, memory = canvas.subplots(1, 2)
    lengths = sorted({one.n for one in figures})
    _frame(time, "milliseconds", lengths)
    _frame(memory, "peak memory beside the inputs, MiB", lengths)
    names = list(dict.fromkeys(one.name for one in figures))
    for colour, name in zip(FOUR, names, strict=False):
        mine = [one for one in figures if one.name == name]
        style = {"color": colour, "marker": "o", "markersize": 4.5, "label": name}
        times = [(one.n, MILLISECONDS * s) for one in mine if (s := one.mine.seconds) is not None]
        peaks = [(one.n, m) for one in mine if (m := one.mine.mebibytes) is not None]
        for panel, points in ((time, times), (memory, peaks)):
            panel.plot([n for n, _ in points], [y for _, y in points], **style)
    time.legend(frameon=False, fontsize=10)
    save_png(canvas, path)


def _frame(panel: Axes, title: str, lengths: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_locator(LogLocator(base=4, numticks=99))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.minorticks_off()
    panel.set_xticks(lengths, [str(n) for n in lengths])
    panel.set_xlabel("n, tokens")
    panel.set_title(title, color=INK, fontsize=11)
    plain(panel)
