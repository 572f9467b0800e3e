"""The charts of one task in the HTML report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xcope.compare.report import svg
from xcope.compare.report.curves import (
    Line,
    learning_lines,
    length_lines,
    length_splits,
    position_lines,
    position_splits,
)
from xcope.compare.report.palette import Look, looks
from xcope.compare.report.wording import words
from xcope.compare.stats.summary import Summary
from xcope.training.metrics import Metric, metric_called


@dataclass(frozen=True)
class Chart:
    """A picture with its heading.

    Args:
        kind: ``split``, ``learning``, ``length`` or ``position``.
        note: what the reader has to know.
    """

    kind: str
    title: str
    svg: Markup
    note: str = ""


def charts(summary: Summary) -> Iterator[Chart]:
    """All that there is to draw."""
    yield from _splits(summary)
    yield from _lengths(summary)
    yield from _learning(summary)
    yield from _positions(summary)


def _splits(summary: Summary) -> Iterator[Chart]:
    values = [v for row in summary.rows for cell in row.cells.values() for v in cell.values]
    # shares begin at 0 whatever they are
    shown = [0.0] * (summary.metric.share) + _finite(values)
    x = svg.linear(
        shown or [0.0],
        f"{summary.metric.heading} ({summary.metric.better} is better)",
        _show(summary.metric),
    )
    note = f"A {'bar' if x.low == 0 else 'stroke'} is the mean, a dot one seed."
    for split in summary.splits:
        marked = summary.standing(split)
        bars = [
            svg.Bar(
                row.label,
                summary.text(row, split),
                row.cells[split].mean,
                row.cells[split].values,
                row.label in marked,
            )
            for row in summary.rows
        ]
        name = f"{summary.metric.heading} on {words(split)}, a bar for each scheme"
        drawn = svg.bar_chart(name, bars, _looks(summary), x)
        yield Chart("split", words(split), Markup(drawn), note)


def _lengths(summary: Summary) -> Iterator[Chart]:
    splits, lines = length_splits(summary), length_lines(summary)
    if values := _values(lines):
        x = svg.at_lengths(list(splits.values()), "tokens per test sequence")
        y = svg.linear(values, summary.metric.heading, _show(summary.metric))
        name = f"{summary.metric.heading} over the length of sequences"
        drawn = svg.line_chart(name, lines, _looks(summary), x, y, dots=True)
        first, last = min(splits.values()), max(splits.values())
        note = f"Trained on {first:,} tokens, tested on up to {last / first:.3g} times as many."
        yield Chart("length", f"{summary.metric.heading} over length", Markup(drawn), note)


def _positions(summary: Summary) -> Iterator[Chart]:
    for split, metric in position_splits(summary).items():
        lines = position_lines(summary, split)
        if values := _values(lines):
            x = svg.linear([0.0, *(x for line in lines for x in line.x)], "position", _plain)
            y = svg.linear(values, metric_called(metric).heading, _show(metric_called(metric)))
            name = f"{metric_called(metric).heading} by position, {words(split)}"
            drawn = svg.line_chart(name, lines, _looks(summary), x, y)
            yield Chart("position", name, Markup(drawn))


def _learning(summary: Summary) -> Iterator[Chart]:
    lines = learning_lines(summary)
    if values := _values(lines):
        x = svg.linear([0.0, *(x for line in lines for x in line.x)], "training step", _plain)
        y = svg.logarithmic(values, "loss")
        drawn = svg.line_chart("training loss over steps", lines, _looks(summary), x, y)
        note = "Nats per scored token; a line is the mean, a band the range of the seeds."
        yield Chart("learning", "Training loss", Markup(drawn), note)


def _looks(summary: Summary) -> list[Look]:
    return list(looks([row.label for row in summary.rows]).values())


def _values(lines: Sequence[Line]) -> list[float]:
    return _finite([y for line in lines for y in (*line.low, *line.high)])


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _show(metric: Metric) -> Callable[[float], str]:
    return (lambda y: f"{100 * y:.4g}%") if metric.share else _plain


def _plain(value: float) -> str:
    return f"{value:,.6g}"
