"""Runs that differ only in their seed become one row: mean ± std per split, and which are best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xcope.compare.report import wording
from xcope.compare.report.wording import LAST_DIGIT, PERCENT, number
from xcope.compare.run.results import Outcome
from xcope.compare.stats.inference import Interval, bootstrap_interval
from xcope.compare.stats.paired import Paired, paired


@dataclass(frozen=True)
class Cell:
    """One scheme on one split: seed → value, of the seeds that have one."""

    by_seed: Mapping[int, float]

    @property
    def values(self) -> tuple[float, ...]:
        """Of each seed."""
        return tuple(self.by_seed.values())

    @property
    def mean(self) -> float:
        """NaN where no seed has a value."""
        return statistics.fmean(self.values) if self.by_seed else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 for a single seed."""
        return statistics.stdev(self.values) if len(self.by_seed) > 1 else 0.0

    @property
    def interval(self) -> Interval | None:
        """Bootstrap interval of the mean; None for fewer than two seeds."""
        return bootstrap_interval(self.values) if len(self.by_seed) > 1 else None


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
    def scheme(self) -> str:
        """The scheme without the other swept keys."""
        return self.outcomes[0].run.scheme

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

    @property
    def peak_bytes(self) -> float | None:
        """Mean peak memory of a run; None where it was not measured."""
        peaks = [o.peak_bytes for o in self.finished if o.peak_bytes is not None]
        return statistics.fmean(peaks) if peaks else None


@dataclass(frozen=True)
class Summary:
    """The table of one task: rows of schemes, columns of splits, one metric (lower is better).

    Args:
        sequences: test sequences of a split, of each seed.
        baseline: label of a scheme or of a row; None: the first.
    """

    task: str
    metric: str
    splits: tuple[str, ...]
    rows: tuple[Row, ...]
    sequences: int
    baseline: str | None = None

    @property
    def seeds(self) -> int:
        """The largest number of seeds of a row."""
        return max((len(row.outcomes) for row in self.rows), default=0)

    def base(self, row: Row) -> Row | None:
        """The row that ``row`` is compared with; None where it is that itself.

        With other swept keys beside the scheme, a row is compared with the baseline scheme at the
        same values of them, unless the baseline is the label of a row.
        """
        named = [one for one in self.rows if one.label == self.baseline]
        first = self.rows[0]
        if not named and self.baseline is None and len({one.scheme for one in self.rows}) == 1:
            named = [first]
        wanted = self.baseline or first.scheme
        others = row.outcomes[0].run.others
        alike = [
            one
            for one in self.rows
            if one.scheme == wanted and one.outcomes[0].run.others == others
        ]
        found = next(iter(named or alike), None)
        return None if found is row else found

    def against(self, row: Row, other: Row, split: str) -> Paired:
        """``row`` compared with another row, seed by seed."""
        ours, theirs = row.cells[split], other.cells[split]
        test_error = math.sqrt(self._of_test(ours) + self._of_test(theirs))
        resolution = max(LAST_DIGIT / 2, 2 * test_error)
        return paired(ours.by_seed, theirs.by_seed, resolution)

    def standing(self, split: str) -> dict[str, str]:
        """Label → ``best`` (the lowest mean) or ``tied`` (it cannot be told from that one).

        If no row can be told from the best, nothing is marked.
        """
        rows = [row for row in self.rows if math.isfinite(row.cells[split].mean)]
        if not rows:
            return {}
        best = min(rows, key=lambda row: row.cells[split].mean)
        others = [row for row in rows if row is not best]
        tied = [row for row in others if self._tied(self.against(row, best, split))]
        if len(tied) == len(others):
            return {}
        return {best.label: "best"} | {row.label: "tied" for row in tied}

    def _tied(self, pair: Paired) -> bool:
        """Whether two rows cannot be told apart; with one seed: whether they are too close."""
        if self.seeds == 1:
            return not pair.resolved
        return pair.verdict in ("not distinguishable", "too few seeds")

    def _of_test(self, cell: Cell) -> float:
        """Variance that the choice of test sequences adds to a cell's mean.

        Known for shares, and too large where a sequence has several scored tokens.
        """
        if self.metric not in PERCENT or not math.isfinite(cell.mean):
            return 0.0
        return max(0.0, cell.mean * (1 - cell.mean) / self.sequences)

    def text(self, row: Row, split: str) -> str:
        """``12.3 ± 0.4`` (% for shares), ``12.3 (1 of 3)`` where seeds failed, ``failed``."""
        return " ".join(self.texts(row, split))

    def texts(self, row: Row, split: str) -> list[str]:
        """`text` in its parts: the number, and how many seeds have one if not all have."""
        cell, seeds = row.cells[split], len(row.outcomes)
        if not cell.values:
            return ["failed"]
        mean, std = number(cell.mean, self.metric), number(cell.std, self.metric)
        text = f"{mean} ± {std}" if len(cell.values) > 1 else mean
        some = len(cell.values) < seeds
        return [text, f"({len(cell.values)} of {seeds})"] if some else [text]

    @property
    def unit(self) -> str:
        """The metric as a heading: ``error, %``."""
        return wording.unit(self.metric)


def spread_text(summary: Summary) -> str:
    """``one seed``, or ``mean ± std over 3 seeds``."""
    return "one seed" if summary.seeds == 1 else f"mean ± std over {summary.seeds} seeds"


def summarise(outcomes: Sequence[Outcome], baseline: str | None = None) -> list[Summary]:
    """One summary per task of the sweep, rows and tasks in the order of the sweep."""
    tasks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tasks.setdefault(outcome.run.task, []).append(outcome)
    return [_summary(task, members, baseline) for task, members in tasks.items()]


def _summary(task: str, outcomes: list[Outcome], baseline: str | None) -> Summary:
    run = outcomes[0].run
    test = run.config.evaluate
    variants: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        variants.setdefault(outcome.run.variant, []).append(outcome)
    rows = tuple(_row(label, tuple(o), run.splits, run.metric) for label, o in variants.items())
    sequences = test.batches * test.batch_size
    return Summary(task, run.metric, run.splits, rows, sequences, baseline)


def _row(label: str, outcomes: tuple[Outcome, ...], splits: tuple[str, ...], metric: str) -> Row:
    cells = {
        split: Cell({o.run.seed: o.metrics[split][metric] for o in outcomes if o.ok})
        for split in splits
    }
    return Row(label, outcomes, cells)
