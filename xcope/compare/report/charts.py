"""The charts of a task, each drawn by one function: PNG files for `report.md`, SVG for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xcope.compare.report.columns import Column
from xcope.compare.report.curves import (
    Line,
    learning_lines,
    length_lines,
    length_splits,
    position_lines,
    position_splits,
    swept_lines,
)
from xcope.compare.report.wording import sentence, words
from xcope.compare.stats.summary import Summary
from xcope.plotting import INK, SOFT, Look, inline_svg, looks, mark, plain, save_png
from xcope.training.metrics import Metric, metric_called

WIDTH, HEIGHT, BAR = 360 / 72, 250 / 72, 34 / 72
"""Inches: of a chart, and of a bar with its name above. On the page an inch is 72 pixels, so a
chart is as wide as a phone."""
COLUMNS, DPI = 2, 140
SIZE = 11
"""Of letters in points."""
STEPS = ((1,), (1, 2, 5))
"""Of ticks between powers of ten."""
MOST_POINTS = 160
"""Of a line; longer ones are thinned."""
MOST_LETTERS = 48
"""Of a label; as many have room in a chart."""


@dataclass(frozen=True)
class Chart:
    """A diagram with its heading.

    Args:
        kind: ``split``, ``length``, ``learning``, ``position`` or ``cost``.
        name: what a screen reader says.
        draw: draws it, without its title.
        note: what the reader has to know.
        height: inches.
    """

    kind: str
    title: str
    name: str
    draw: Callable[[Axes], None]
    note: str = ""
    height: float = HEIGHT

    @property
    def svg(self) -> Markup:
        """The chart as an element of the page."""
        figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
        self.draw(figure.subplots())
        return Markup(inline_svg(figure, self.name))


def save_plots(summary: Summary, out: Path, name: str, columns: Sequence[Column] = ()) -> list[str]:
    """Write a task's charts as PNG, one file for each kind; returns their paths from ``out``.

    Args:
        name: end of the files' names.
        columns: costs to draw.
    """
    (out / "plots").mkdir(exist_ok=True)
    files: dict[str, list[Chart]] = {}
    names = {"split": summary.metric.name, "learning": "loss", "swept": summary.swept}
    # the loss stands last
    recorded = sorted(run_charts(summary), key=lambda chart: chart.kind == "learning")
    for chart in (*charts(summary), *recorded):
        files.setdefault(names.get(chart.kind, chart.kind), []).append(chart)
    for one in summary.further:
        for chart in charts(one):
            files.setdefault(f"{one.metric.name}-{chart.kind}", []).append(chart)
    files |= {column.name: [cost_chart(summary, column)] for column in columns}
    paths = {f"plots/{file}-{name}.png": drawn for file, drawn in files.items()}
    for path, drawn in paths.items():
        _save(drawn, in_picture(words(summary.task)), out / path)
    return list(paths)


def _save(charts: Sequence[Chart], heading: str, path: Path) -> None:
    """Write charts of one kind side by side, with one legend for their lines."""
    columns = min(COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    size = (WIDTH * columns, 0.4 + rows * (0.3 + charts[0].height))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, chart in zip(panels, charts, strict=False):
        chart.draw(panel)
        panel.set_title(chart.title, fontsize=SIZE, color=INK)
    for panel in panels[len(charts) :]:
        panel.set_axis_off()
    figure.suptitle(heading, color=INK, x=0.01, ha="left")
    lines, labels = panels[0].get_legend_handles_labels()
    if lines:
        figure.set_figwidth(size[0] + 0.7 + 0.09 * max(map(len, labels)))
        figure.legend(lines, labels, loc="outside right upper", frameon=False, fontsize=SIZE)
    save_png(figure, path, DPI)


def drawn(summary: Summary) -> Summary:
    """What charts draw: the best row of each scheme where `_swept` draws the others, else all."""
    return replace(summary, rows=summary.best) if swept_lines(summary, "") else summary


def charts(summary: Summary) -> Iterator[Chart]:
    """Draw the metric of a summary: on each split, over the length of sequences, and over a number
    that is swept beside the scheme."""
    shown = drawn(summary)
    style = list(looks([row.label for row in shown.rows]).values())
    yield from _splits(shown, style)
    yield from _lengths(shown, style)
    yield from _swept(summary, style)


def run_charts(summary: Summary) -> Iterator[Chart]:
    """Draw what the runs of a task recorded beside it: loss over steps, curves over positions."""
    shown = drawn(summary)
    style = list(looks([row.label for row in shown.rows]).values())
    yield from _learning(shown, style)
    yield from _positions(shown, style)


def _splits(summary: Summary, style: Sequence[Look]) -> Iterator[Chart]:
    """Bars of the headline metric, a chart for each split, all on one scale."""
    metric, values = summary.metric, list[float]()
    bars = dict[str, list[Bar]]()
    for split in summary.splits:
        marked = summary.standing(split)
        bars[split] = []
        for row in summary.rows:
            cell, text = row.cells[split], summary.text(row, split)
            ends = f" {metric.interval(cell.interval)}" if cell.interval else ""
            bars[split].append(
                Bar(row.label, text, cell.mean, cell.by_seed, row.label in marked, ends)
            )
            values += cell.values
    label = f"{metric.heading} ({metric.better} is better)"
    x = _with_room(_scale(values, metric, label), [bar for some in bars.values() for bar in some])
    for split in summary.splits:
        draw = partial(_bars, bars=bars[split], style=style, x=x)
        name = f"{metric.heading} on {words(split)}, a bar for each scheme"
        yield Chart("split", words(split), name, draw, _about_bars(x), _height(bars[split]))


def cost_chart(summary: Summary, column: Column) -> Chart:
    """Bars of a cost, one for each scheme."""
    style = list(looks([row.label for row in summary.rows]).values())
    bars = []
    for row in summary.rows:
        by_seed = {o.run.seed: v for o in row.finished if (v := column.of(o)) is not None}
        mean = row.mean(column.of)
        bars.append(Bar(row.label, column.shown(mean), math.nan if mean is None else mean, by_seed))
    values = [v for bar in bars for v in bar.by_seed.values() if math.isfinite(v)]
    label = f"{column.heading} ({column.better} is better)"
    x = _with_room(linear([0.0, *values], column.text, label), bars)
    draw = partial(_bars, bars=bars, style=style, x=x)
    name = f"{column.heading}, a bar for each scheme"
    return Chart("cost", column.heading, name, draw, _about_bars(x), _height(bars))


def _with_room(x: Scale, bars: Sequence[Bar]) -> Scale:
    """The scale with room for the bars' numbers on the right."""
    share = min(0.5, (20 + 7 * max(len(bar.text) for bar in bars)) / 72 / WIDTH)
    return replace(x, high=x.low + (x.high - x.low) / (1 - share))


def _about_bars(x: Scale) -> str:
    return f"A {'bar' if x.low == 0 else 'stroke'} is the mean, a dot one seed."


def _height(bars: Sequence[Bar]) -> float:
    return BAR * len(bars) + 50 / 72


def _lengths(summary: Summary, style: Sequence[Look]) -> Iterator[Chart]:
    splits, lines = length_splits(summary), length_lines(summary)
    if values := _finite(lines):
        first, last = min(splits.values()), max(splits.values())
        ends, label = (first / 1.08, last * 1.08), "tokens per sequence (first: as in training)"
        x = Scale(*ends, tuple(splits.values()), lambda n: f"{n:,}", label, log=True)
        y = _scale(values, summary.metric)
        draw = partial(_lines, lines=lines, style=style, x=x, y=y, dots=True)
        name = f"{summary.metric.heading} over the length of sequences"
        note = f"Trained on {first:,} tokens, tested on up to {last / first:.3g} times as many."
        yield Chart("length", f"{summary.metric.heading} over length", name, draw, note)


def _swept(summary: Summary, style: Sequence[Look]) -> Iterator[Chart]:
    """The metric over the number that is swept, a chart for each split, all on one scale."""
    found = {split: swept_lines(summary, split) for split in summary.splits}
    values = _finite([line for lines in found.values() for line in lines])
    if not values:
        return
    numbers = sorted({x for lines in found.values() for line in lines for x in line.x})
    low, high = numbers[0], numbers[-1]
    log = low > 0 and high / low > 3
    room = (high / low) ** 0.06 if log else 0.06 * (high - low) or abs(high) or 1.0
    ends = (low / room, high * room) if log else (low - room, high + room)
    x = Scale(*ends, tuple(numbers), "{:g}".format, summary.swept, log=log)
    y = _scale(values, summary.metric)
    for split, lines in found.items():
        draw = partial(_lines, lines=lines, style=style, x=x, y=y, dots=True)
        name = f"{sentence(summary.metric.heading)} over {summary.swept}, {words(split)}"
        yield Chart("swept", name, name, draw, "A band is the range of the seeds.")


def _learning(summary: Summary, style: Sequence[Look]) -> Iterator[Chart]:
    lines = learning_lines(summary)
    values = _finite(lines)
    x = linear([0.0, *(x for line in lines for x in line.x)], _plain, "training step")
    draw = partial(_lines, lines=lines, style=style, x=x, y=logarithmic(values))
    note = "A line is the mean, a band the range of the seeds." if values else "None was logged."
    title = "Training loss, nats per scored token"
    yield Chart("learning", title, "training loss over steps", draw, note)


def _positions(summary: Summary, style: Sequence[Look]) -> Iterator[Chart]:
    """The metric by position, a chart for each split, all of one metric on one scale."""
    metrics = {s: metric_called(name) for s, name in position_splits(summary).items()}
    found = {split: position_lines(summary, split) for split in metrics}
    for split, metric in metrics.items():
        alike = [line for other in metrics if metrics[other] is metric for line in found[other]]
        x = linear([0.0, *(x for line in found[split] for x in line.x)], _plain, "position")
        y = _scale(_finite(alike), metric)
        draw = partial(_lines, lines=found[split], style=style, x=x, y=y)
        name = f"{metric.heading} by position, {words(split)}"
        yield Chart("position", name, name, draw)


@dataclass(frozen=True)
class Bar:
    """A scheme's mean, with its seeds.

    Args:
        text: the number as tables have it.
        mean: NaN where no seed has a value.
        marked: whether it is best or tied.
        ends: the interval of the mean, for those who point at the bar.
    """

    label: str
    text: str
    mean: float
    by_seed: Mapping[int, float]
    marked: bool = False
    ends: str = ""


@dataclass(frozen=True)
class Scale:
    """The range of an axis and its ticks.

    Args:
        show: writes the number of a tick.
        log: distances are those of logarithms.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    show: Callable[[float], str]
    label: str = ""
    log: bool = False

    def set(self, axes: Axes, which: Literal["x", "y"]) -> None:
        """Give an axis this scale."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        axes.set(**{f"{which}scale": "log" if self.log else "linear"})
        axis.set_ticks(self.ticks, list(map(self.show, self.ticks)))
        axis.set_ticks([], minor=True)
        axis.set_label_text(self.label, fontsize=SIZE, color=SOFT)
        axes.set(**{f"{which}lim": (self.low, self.high)})


def linear(values: Sequence[float], show: Callable[[float], str], label: str = "") -> Scale:
    """From 0, or from the lowest number if all are far from it, with about 5 ticks."""
    low, high = min(values), max(values)
    low = 0.0 if 0 <= low < 0.6 * high else low
    high = high if high - low > 1e-9 * abs(high) else low + 1.0
    ticks = MaxNLocator(5).tick_values(low, high)
    low = low if low == 0 else min(low, float(ticks[0]))
    kept = [float(t) for t in ticks if low - 1e-12 <= t <= high + 1e-12]
    return Scale(low, high, tuple(kept), show, label)


def logarithmic(values: Sequence[float]) -> Scale:
    """Logarithmic, with ticks at powers of ten; at 1, 2 and 5 times these, or closer, if few."""
    positive = [v for v in values if v > 0] or [1.0]
    low, high = min(positive), max(positive)
    if high - low <= 1e-9 * high:
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [[step * 10.0**power for power in powers for step in steps] for steps in STEPS]
    choices.append([float(tick) for tick in MaxNLocator(5).tick_values(low, high)])
    within = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    kept = next((ticks for ticks in within if len(ticks) >= 3), within[-1])
    return Scale(low, high, tuple(kept), lambda y: f"{y:g}", log=True)


def _scale(values: Sequence[float], metric: Metric, label: str = "") -> Scale:
    """The scale of a metric: that of shares begins at 0 whatever they are."""
    finite = [value for value in values if math.isfinite(value)]
    if metric.share:
        return linear([0.0, *finite], lambda y: f"{100 * y:.4g}%", label)
    return linear(finite or [0.0], _plain, label)


def _plain(value: float) -> str:
    return f"{value:,.6g}"


def _finite(lines: Sequence[Line]) -> list[float]:
    return [y for line in lines for y in (*line.low, *line.high) if math.isfinite(y)]


def _bars(axes: Axes, bars: Sequence[Bar], style: Sequence[Look], x: Scale) -> None:
    """Draw a bar per scheme under its name, with a dot per seed and its number on the right; a
    stroke at the mean where the scale does not begin at 0."""
    for number, (bar, look) in enumerate(zip(bars, style, strict=True)):
        font = {"weight": "bold" if bar.marked else "normal", "size": SIZE, "color": INK}
        across = axes.get_yaxis_transform()  # 0 … 1 to the right, rows downwards
        name = axes.text(0, number + 0.38, in_picture(bar.label), font, transform=across)
        value = axes.text(1, number + 0.8, bar.text, font, transform=across, ha="right")
        mark(name, number, bar.label)
        mark(value, number)
        for written in (name, value):
            written.set(va="center", in_layout=False)
        if math.isfinite(bar.mean):
            wide = 0.006 * (x.high - x.low)
            start, width = (0, bar.mean) if x.low == 0 else (bar.mean - wide / 2, wide)
            (drawn,) = axes.barh(
                number + 0.8, width, 0.36, start, color=look.colour,
                alpha=0.4 if x.low == 0 else 1, linewidth=0
            )  # fmt: skip
            mark(drawn, number, f"{bar.label}: {bar.text}{bar.ends}")
        seeds = {seed: value for seed, value in bar.by_seed.items() if math.isfinite(value)}
        if seeds:
            # a little apart, so that the same value twice is seen
            apart = min(0.04, 0.2 / len(seeds))
            heights = [number + 0.8 + apart * (i - (len(seeds) - 1) / 2) for i in range(len(seeds))]
            (dots,) = axes.plot(
                list(seeds.values()), heights, "o", ms=7, color=look.colour, mec="white", mew=0.8,
                clip_on=False,
            )  # fmt: skip
            mark(dots, number, *(f"seed {seed}: {x.show(v)}" for seed, v in seeds.items()))
    _frame(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_ylim(len(bars), 0)
    x.set(axes, "x")


def _lines(
    axes: Axes, lines: Sequence[Line], style: Sequence[Look], x: Scale, y: Scale, dots: bool = False
) -> None:
    """Draw a line per scheme with a band from the lowest to the highest seed.

    Args:
        dots: mark each point.
    """
    for number, (line, look) in enumerate(zip(lines, style, strict=True)):
        if not line.shown:
            continue
        last = len(line.x) - 1
        kept = [*range(0, last, math.ceil(len(line.x) / MOST_POINTS)), last]
        at = np.array(line.x)[kept]
        low, mean, high = (
            np.clip(np.array(values)[kept], y.low, y.high)
            for values in (line.low, line.mean, line.high)
        )
        if line.seeds > 1:
            around, between = [*at, *at[::-1]], [*high, *low[::-1]]
            (band,) = axes.fill(around, between, color=look.colour, alpha=0.11, linewidth=0)
            mark(band, number)
        (drawn,) = axes.plot(at, mean, label=in_picture(line.label), **look.line())
        mark(drawn, number, line.label)
        there = np.isfinite(mean)
        if dots:
            (points,) = axes.plot(at[there], mean[there], "o", ms=6.4, mew=0, color=look.colour)
            texts = zip(at[there], mean[there], strict=True)
            mark(points, number, *(f"{line.label}: {y.show(v)} at {x.show(n)}" for n, v in texts))
    _frame(axes, "both")
    x.set(axes, "x")
    y.set(axes, "y")


def _frame(axes: Axes, grid: Literal["both", "x"]) -> None:
    plain(axes, grid)
    axes.tick_params(length=0, pad=5, labelsize=SIZE, labelcolor=SOFT)


def in_picture(label: str) -> str:
    """A label as a chart has room for it: one line, cut where it is long."""
    line = " ".join(label.split())
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}…"
