"""Runs that differ only in their seed become one row: mean ± std per split, and which are best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from xcope.compare.results import Outcome

PERCENT = {"error", "sequence_error"}
"""Metrics that are shares, shown in %; others are shown as they are."""


LAST_DIGIT = 0.001
"""0.1 % for shares, the third decimal for others: what `number` shows."""


@dataclass(frozen=True)
class Cell:
    """One scheme on one split: the value of each seed that has one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """NaN where no seed has a value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Row:
    """One scheme (with the other swept keys that its label names) over its seeds.

    Args:
        outcomes: one per seed, failed ones too.
        cells: split → values.
    """

    label: str
    outcomes: tuple[Outcome, ...]
    cells: dict[str, Cell]

    @property
    def finished(self) -> tuple[Outcome, ...]:
        """The runs that have results."""
        return tuple(outcome for outcome in self.outcomes if outcome.ok)

    @property
    def params(self) -> int | None:
        """Number of parameters; None where every seed failed."""
        return self.finished[0].params if self.finished else None

    @property
    def seconds(self) -> float | None:
        """Mean training time of a run; None where every seed failed."""
        times = [outcome.seconds for outcome in self.finished]
        return statistics.fmean(times) if times else None


@dataclass(frozen=True)
class Summary:
    """The table of one task: rows of schemes, columns of splits, one metric (lower is better).

    Args:
        sequences: test sequences of a split, of each seed.
    """

    task: str
    metric: str
    splits: tuple[str, ...]
    rows: tuple[Row, ...]
    sequences: int

    @property
    def seeds(self) -> int:
        """The largest number of seeds of a row."""
        return max((len(row.outcomes) for row in self.rows), default=0)

    def best(self, split: str) -> frozenset[str]:
        """Labels of the rows with the lowest mean, and of those that cannot be told from it.

        Two means cannot be told apart here if they differ by no more than two standard errors or
        than the last digit shown. If that holds for every row, none is best.
        """
        cells = {row.label: row.cells[split] for row in self.rows}
        cells = {label: cell for label, cell in cells.items() if math.isfinite(cell.mean)}
        lowest = min(cells.values(), key=lambda cell: cell.mean, default=None)
        best = {label for label, cell in cells.items() if lowest and self._close(lowest, cell)}
        return frozenset() if len(best) == len(cells) else frozenset(best)

    def _close(self, lowest: Cell, other: Cell) -> bool:
        error = math.sqrt(self._variance(lowest) + self._variance(other))
        return other.mean - lowest.mean <= max(LAST_DIGIT / 2, 2 * error)

    def _variance(self, cell: Cell) -> float:
        """Of a cell's mean: what the choice of seeds and that of the test sequences add to it.

        The latter is known for shares, and too large where a sequence has several scored tokens.
        """
        of_seeds = cell.std**2 / len(cell.values)
        of_test = cell.mean * (1 - cell.mean) / self.sequences if self.metric in PERCENT else 0.0
        return of_seeds + max(0.0, of_test)

    def text(self, row: Row, split: str) -> str:
        """``12.3 ± 0.4`` (% for shares), ``12.3 (1 of 3)`` where seeds failed, ``failed``."""
        cell, seeds = row.cells[split], len(row.outcomes)
        if not cell.values:
            return "failed"
        mean, std = number(cell.mean, self.metric), number(cell.std, self.metric)
        text = f"{mean} ± {std}" if len(cell.values) > 1 else mean
        return text if len(cell.values) == seeds else f"{text} ({len(cell.values)} of {seeds})"

    @property
    def unit(self) -> str:
        """The metric as a heading: ``error, %``."""
        name = words(self.metric)
        return f"{name}, %" if self.metric in PERCENT else name


def number(value: float, metric: str) -> str:
    """A value as it is shown: shares in % with one decimal, others with three."""
    return f"{100 * value:.1f}" if metric in PERCENT else f"{value:.3f}"


def words(name: str) -> str:
    """A name as people write it: ``in_distribution`` → ``in distribution``."""
    return name.replace("_", " ")


def seconds_text(seconds: float | None) -> str:
    """Seconds with two significant digits or more; ``-`` for None."""
    if seconds is None:
        return "-"
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def spread_text(summary: Summary) -> str:
    """``one seed``, or ``mean ± std over 3 seeds``."""
    return "one seed" if summary.seeds == 1 else f"mean ± std over {summary.seeds} seeds"


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One summary per task of the sweep, rows and tasks in the order of the sweep."""
    tasks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tasks.setdefault(outcome.run.task, []).append(outcome)
    return [_summary(task, members) for task, members in tasks.items()]


def _summary(task: str, outcomes: list[Outcome]) -> Summary:
    run = outcomes[0].run
    test = run.config.evaluate
    variants: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        variants.setdefault(outcome.run.variant, []).append(outcome)
    rows = tuple(_row(label, tuple(o), run.splits, run.metric) for label, o in variants.items())
    return Summary(task, run.metric, run.splits, rows, test.batches * test.batch_size)


def _row(label: str, outcomes: tuple[Outcome, ...], splits: tuple[str, ...], metric: str) -> Row:
    cells = {
        split: Cell(tuple(o.metrics[split][metric] for o in outcomes if o.ok)) for split in splits
    }
    return Row(label, outcomes, cells)
