"""The lines of a comparison's pictures: loss over steps, the metric over length and position."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xcope.compare.run.plan import Run
from xcope.compare.run.results import Outcome
from xcope.compare.stats.summary import Row, Summary
from xcope.config import build_task
from xcope.training import RunFolder, read_metrics


@dataclass(frozen=True)
class Line:
    """A scheme's mean over seeds at each x, with the lowest and the highest seed."""

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int

    @property
    def shown(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.x)


def line(label: str, curves: Sequence[Mapping[float, float]]) -> Line:
    """The mean of several curves (x → y) at the x that all of them have."""
    shared = [x for x in curves[0] if all(x in curve for curve in curves)] if curves else []
    columns = [[curve[x] for curve in curves] for x in shared]
    return Line(
        label,
        tuple(shared),
        tuple(map(statistics.fmean, columns)),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
        len(curves),
    )


def learning_lines(summary: Summary) -> list[Line]:
    """Training loss over steps, of the runs that have results."""
    return [line(row.label, [_losses(o.run) for o in row.finished]) for row in summary.rows]


def _losses(run: Run) -> dict[float, float]:
    points = read_metrics(RunFolder(run.folder).metrics)
    return {int(point["step"]): point["loss"] for point in points}


def length_splits(summary: Summary) -> dict[str, int]:
    """The measured splits that differ only in length → tokens per sequence; empty for one."""
    task = build_task(summary.rows[0].outcomes[0].run.config)
    lengths = {split: task.seq_len(split) for split in task.length_splits}
    kept = {split: n for split, n in lengths.items() if split in summary.splits}
    return kept if len(kept) > 1 else {}


def length_lines(summary: Summary) -> list[Line]:
    """The metric of each scheme over the length of sequences; empty where the task has one length.

    A seed counts where it has a value.
    """
    splits = length_splits(summary)
    return [line(row.label, _over_length(row, splits)) for row in summary.rows] if splits else []


def _over_length(row: Row, splits: Mapping[str, int]) -> list[dict[float, float]]:
    curves: dict[int, dict[float, float]] = {}
    for split, n in splits.items():
        for seed, value in row.cells[split].by_seed.items():
            curves.setdefault(seed, {})[n] = value
    return list(curves.values())


def swept_lines(summary: Summary, split: str) -> list[Line]:
    """The metric of each scheme over the one number that is swept beside it, in `Summary.best`'s
    order.

    Empty where one scheme alone is swept, or something else than one number; the lines are where
    there is no such split.
    """
    if len(summary.best) == len(summary.rows) or len(summary.rows[0].others) != 1:
        return []
    try:
        at = {row.label: float(*row.others.values()) for row in summary.rows}
    except ValueError:
        return []
    lines = []
    for one in summary.best:
        rows = sorted(
            (row for row in summary.rows if row.scheme == one.scheme), key=lambda row: at[row.label]
        )
        cells = {at[row.label]: row.cells[split] for row in rows if split in row.cells}
        known = {x: cell for x, cell in cells.items() if cell.values}
        lines.append(
            Line(
                one.scheme,
                tuple(known),
                tuple(cell.mean for cell in known.values()),
                tuple(min(cell.values) for cell in known.values()),
                tuple(max(cell.values) for cell in known.values()),
                max((len(cell.values) for cell in known.values()), default=0),
            )
        )
    return lines


def position_splits(summary: Summary) -> dict[str, str]:
    """The splits that have a curve over positions → its metric.

    Where only one place of a sequence is scored there is no curve.
    """
    found = dict[str, str]()
    for outcome in (o for row in summary.rows for o in row.finished):
        for split, measured in outcome.by_position.items():
            if len(_by_position(outcome, split)) > 1:
                found.setdefault(split, measured.get("metric", summary.metric.name))
    return {split: found[split] for split in summary.splits if split in found}


def position_lines(summary: Summary, split: str) -> list[Line]:
    """The metric by position within the sequences of a split, at the middle of each bin."""
    return [
        line(row.label, [curve for o in row.finished if (curve := _by_position(o, split))])
        for row in summary.rows
    ]


def _by_position(outcome: Outcome, split: str) -> dict[float, float]:
    """Middle of a bin → value; bins without a scored token are left out."""
    measured = outcome.by_position.get(split, {})
    edges, values = measured.get("edges", []), measured.get("values", [])
    bins = zip(edges[:-1], edges[1:], values, strict=False)
    return {
        (low + high - 1) / 2: value
        for low, high, value in bins
        if value is not None and math.isfinite(value)
    }
