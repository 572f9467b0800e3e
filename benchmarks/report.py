"""What the reports share: on what they were measured, and time and memory against the length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.measure import Bar, Breakdown
from xcope.environment import TIMED, memory, processor, versions
from xcope.markdown import table, write_csv
from xcope.plotting import BLUE, GREEN, GREY, INK, ORANGE, plain, save_png

QUICK_RUN = "**A quick run: too short to judge the bars by.**"
MILLISECONDS = 1000

Point = tuple[int, float | None, float | None]
"""A length, seconds and MiB; None where that is not known."""


def machine() -> str:
    """Processor and memory, the threads that torch has, and versions, in one line."""
    return f"{processor()}, {memory()}; threads: {torch.get_num_threads()}; {versions(TIMED)}"


def plot_lengths(curves: Mapping[str, Sequence[Point]], path: Path, memory_title: str) -> None:
    """Draw time and memory against n, all axes logarithmic.

    Args:
        curves: name of a contender → its points.
        path: of the PNG.
        memory_title: of the panel that shows memory.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    lengths = sorted({n for points in curves.values() for n, *_ in points})
    for panel, title in zip(panels, ("milliseconds", memory_title), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_locator(LogLocator(base=4, numticks=99))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.minorticks_off()
        panel.set_xticks(lengths, [str(n) for n in lengths])
        panel.set_xlabel("n, tokens")
        panel.set_title(title, color=INK, fontsize=11)
        plain(panel)
    for colour, (name, points) in zip((GREY, BLUE, ORANGE, GREEN), curves.items(), strict=False):
        style = {"color": colour, "marker": "o", "markersize": 4.5, "label": name}
        times = [(n, MILLISECONDS * time) for n, time, _ in points if time is not None]
        peaks = [(n, peak) for n, _, peak in points if peak is not None]
        for panel, found in zip(panels, (times, peaks), strict=True):
            panel.plot([n for n, _ in found], [y for _, y in found], **style)
    panels[0].legend(frameon=False, fontsize=10)
    save_png(figure, path)


# -- where time goes -----------------------------------------------------------------------------


def write_breakdowns(path: Path, found: Sequence[Breakdown], parts: Sequence[str]) -> None:
    """Write profiles as CSV."""
    write_csv(
        path,
        ("case", "what", "seconds", *parts),
        (
            (b.case, b.what, f"{b.whole:.5f}", *(f"{b.parts[part]:.5f}" for part in parts))
            for b in found
        ),
    )


def breakdown_table(found: Sequence[Breakdown], parts: Sequence[str]) -> str:
    """Profiles in milliseconds, as Markdown."""
    rows = [
        (b.case, b.what, *(_milliseconds(seconds) for seconds in (b.whole, *b.parts.values())))
        for b in found
    ]
    return table(("", "", "whole", *parts), rows, "-r")


def _milliseconds(seconds: float) -> str:
    if seconds == 0:
        return "–"
    return f"{MILLISECONDS * seconds:.3g}" if seconds < 0.1 else f"{MILLISECONDS * seconds:.0f}"


def missed(bar: Bar) -> str:
    """How far a bar was missed, or its goal, in words."""
    return f"{bar.ratio:.3f}, to be {bar.text(bar.limit if not bar.met else bar.goal)}."
