"""The costs as a bar chart (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from xcope.benchmark.pictures import COLOURS, INK, plain
from xcope.benchmark.schemes.costs import MEMORY_LIMIT, Cost
from xcope.plotting import save_png


def plot_costs(costs: Sequence[Cost], path: Path) -> None:
    """Time, memory and x-transformers' time, a row for each scheme."""
    figure = Figure(figsize=(11, 1.4 + 0.27 * len(costs)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    _bars(panels[0], "time over SDPA", [c.time for c in costs], [c.time_limit for c in costs])
    _bars(
        panels[1], "peak memory over SDPA", [c.memory for c in costs], [MEMORY_LIMIT] * len(costs)
    )
    panels[2].set_xscale("log")
    panels[2].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[2].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[2].xaxis.set_minor_locator(NullLocator())
    _bars(panels[2], "x-transformers' time over ours", [c.upstream for c in costs])
    panels[0].set_yticks(range(len(costs)), [c.scheme for c in costs])
    panels[0].set_ylim(len(costs) - 0.4, -0.6)
    panels[0].legend(loc="lower right", frameon=False, fontsize=9)
    save_png(figure, path)


def _bars(
    panel: Axes, title: str, values: Sequence[float | None], limits: Sequence[float | None] = ()
) -> None:
    """Bars from 1, that is from neither more nor less, with their limits."""
    for row, value in enumerate(values):
        if value is not None:
            panel.barh(row, value - 1, left=1, height=0.62, color=COLOURS[1])
            panel.annotate(
                f"{value:.3g}" if value >= 10 else f"{value:.2f}",
                (max(value, 1), row),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    rows = [row for row, limit in enumerate(limits) if limit is not None]
    if rows:
        marked = [limit for limit in limits if limit is not None]
        panel.plot(
            marked, rows, "|", color=COLOURS[2], markersize=11, markeredgewidth=2, label="limit"
        )
    panel.axvline(1, color=COLOURS[0], linewidth=1)
    panel.margins(x=0.14)
    panel.set_title(title, color=INK, fontsize=11)
    plain(panel)
    panel.grid(visible=False, axis="y")
