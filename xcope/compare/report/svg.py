"""Small SVG charts, written as text: axes, lines with bands, bars with dots.

matplotlib chooses the ticks, and draws nothing.

Sizes are CSS pixels of a chart that is as wide as a phone. Every element of a scheme has
``data-series``, its number, by which the page finds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

from xcope.compare.report.curves import Line
from xcope.compare.report.palette import Look

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 40
MOST_POINTS = 160
BAR, GAP = 12, 22
"""Height of a bar, and of the line of text above it."""


@dataclass(frozen=True)
class Axis:
    """Where numbers lie between 0 and 1.

    Args:
        ticks: number and its text.
        log: distances are those of logarithms.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str
    log: bool = False

    def at(self, value: float) -> float:
        """0 … 1 within the axis."""
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(max(value, low))
        return 0.5 if high == low else min(1.0, max(0.0, (x - low) / (high - low)))


def linear(values: Sequence[float], label: str, show: Callable[[float], str]) -> Axis:
    """An axis from 0, or from the lowest number if all are far from it, with about 5 ticks."""
    low, high = min(values), max(values)
    low = 0.0 if 0 <= low < 0.6 * high else low
    high = high if high > low else low + 1.0
    ticks = MaxNLocator(5).tick_values(low, high)
    low = low if low == 0 else min(low, float(ticks[0]))
    kept = [float(t) for t in ticks if low - 1e-12 <= t <= high + 1e-12]
    return Axis(low, high, tuple((t, show(t)) for t in kept), label)


def logarithmic(values: Sequence[float], label: str) -> Axis:
    """A logarithmic axis with ticks at 1, 2 and 5 times the powers of ten, or closer ones."""
    positive = [v for v in values if v > 0] or [1.0]
    low, high = min(positive), max(positive)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) < 4 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    if sum(low <= t <= high for t in ticks) < 3:
        ticks = list(map(float, MaxNLocator(5).tick_values(low, high)))
    kept = [t for t in ticks if low <= t <= high]
    return Axis(low, high, tuple((t, f"{t:g}") for t in kept), label, log=True)


def at_lengths(lengths: Sequence[int], label: str) -> Axis:
    """A logarithmic axis with a tick at each length, and a little room at both ends."""
    ticks = tuple((float(n), f"{n:,}") for n in lengths)
    return Axis(min(lengths) / 1.08, max(lengths) * 1.08, ticks, label, log=True)


def line_chart(
    name: str, lines: Sequence[Line], looks: Sequence[Look], x: Axis, y: Axis, *, dots: bool = False
) -> str:
    """A line per scheme with a band from the lowest to the highest seed.

    Args:
        name: what a screen reader says.
        dots: mark each point, with its numbers as a tooltip.
    """
    parts = [*_frame(x, y)]
    for number, (line, look) in enumerate(zip(lines, looks, strict=True)):
        if line.shown:
            parts.append(f'<g data-series="{number}">{_series(line, look, x, y, dots)}</g>')
    return _svg(name, HEIGHT, parts)


def _series(line: Line, look: Look, x: Axis, y: Axis, dots: bool) -> str:
    last = len(line.x) - 1
    kept = [*range(0, last, math.ceil(len(line.x) / MOST_POINTS)), last]

    def path(values: Sequence[float], indices: Sequence[int]) -> str:
        return " ".join(f"{_x(x, line.x[i]):.1f},{_y(y, values[i]):.1f}" for i in indices)

    parts = []
    if line.seeds > 1:
        band = f"{path(line.high, kept)} {path(line.low, kept[::-1])}"
        parts.append(f'<polygon points="{band}" fill="{look.colour}" fill-opacity="0.11"/>')
    dashes = f' stroke-dasharray="{" ".join(f"{d:g}" for d in look.dashes)}"' * bool(look.dashes)
    parts.append(
        f'<polyline points="{path(line.mean, kept)}" fill="none" stroke="{look.colour}" '
        f'stroke-width="2" stroke-linejoin="round"{dashes}/>'
    )
    parts += [_dot(line, look, i, x, y) for i in kept if dots]
    return "".join(parts)


def _dot(line: Line, look: Look, i: int, x: Axis, y: Axis) -> str:
    at, value = line.x[i], line.mean[i]
    return (
        f'<circle cx="{_x(x, at):.1f}" cy="{_y(y, value):.1f}" r="3.2" fill="{look.colour}">'
        f"<title>{escape(line.label)}: {value:.4g} at {at:,g}</title></circle>"
    )


@dataclass(frozen=True)
class Bar:
    """A scheme's mean with a dot per seed; without values where every seed failed."""

    label: str
    text: str
    mean: float
    values: tuple[float, ...]
    marked: bool


def bar_chart(name: str, bars: Sequence[Bar], looks: Sequence[Look], x: Axis) -> str:
    """A bar per scheme under its name and its number; a stroke at the mean where the axis does not
    begin at 0."""
    step = BAR + GAP
    height = TOP + step * len(bars) + BOTTOM + 4
    flat = Axis(0, 1, (), "")
    parts = [*_frame(x, flat, height, left=RIGHT)]
    for number, (bar, look) in enumerate(zip(bars, looks, strict=True)):
        parts.append(f'<g data-series="{number}">')
        parts += _bar(bar, look, x, TOP + step * number)
        parts.append("</g>")
    return _svg(name, height, parts)


def _bar(bar: Bar, look: Look, x: Axis, top: float) -> Iterator[str]:
    kind, y = "marked" if bar.marked else "plain", top + GAP
    yield _text(kind, RIGHT, top + 15, "start", bar.label)
    yield _text(kind, WIDTH - RIGHT, top + 15, "end", bar.text)
    if math.isfinite(bar.mean):
        end = _x(x, bar.mean, RIGHT)
        start = RIGHT if x.low == 0 else end - 1.5
        place = f'x="{start:.1f}" y="{y}" width="{max(1.5, end - start):.1f}" height="{BAR}"'
        yield f'<rect {place} fill="{look.colour}" fill-opacity="{0.4 if x.low == 0 else 1}"/>'
    for value in filter(math.isfinite, bar.values):
        place = f'cx="{_x(x, value, RIGHT):.1f}" cy="{y + BAR / 2}" r="3.6"'
        yield f'<circle {place} fill="{look.colour}" stroke="#fff" stroke-width="0.8"/>'


def _frame(x: Axis, y: Axis, height: int = HEIGHT, left: int = LEFT) -> Iterator[str]:
    """Grid, numbers and names of the axes."""
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    for value, text in y.ticks:
        place = _y(y, value, height)
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield _text("tick", left - 5, place + 4, "end", text)
    for value, text in x.ticks:
        place = _x(x, value, left)
        yield f'<line class="grid" y1="{TOP}" y2="{bottom}" x1="{place:.1f}" x2="{place:.1f}"/>'
        yield _text("tick", place, bottom + 15, "middle", text)
    yield f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield _text("axis-name", (left + right) / 2, height - 6, "middle", x.label)


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _x(axis: Axis, value: float, left: int = LEFT) -> float:
    return left + axis.at(value) * (WIDTH - RIGHT - left)


def _y(axis: Axis, value: float, height: int = HEIGHT) -> float:
    return height - BOTTOM - axis.at(value) * (height - BOTTOM - TOP)


def _svg(name: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">'
    return f"{head}{''.join(parts)}</svg>"
