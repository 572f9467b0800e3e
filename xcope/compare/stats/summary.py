"""Runs that differ only in their seed become one row: means, which are best, and what they cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from xcope.compare.run.plan import last_word
from xcope.compare.run.results import Outcome
from xcope.compare.stats.inference import (
    LEAST_SEEDS,
    Interval,
    Paired,
    bootstrap_interval,
    paired,
)
from xcope.config import Config, build_task
from xcope.config.build import make_model_for, make_task
from xcope.errors import FlagError
from xcope.training.metrics import LOSS, NOTHING, Metric

Quantity = Callable[[Outcome], float | None]
"""What a run cost; None where it is not known."""


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
    def others(self) -> dict[str, str]:
        """What else is swept within a task → the row's value: ``{"train.lr": "0.001"}``."""
        return self.outcomes[0].run.others

    @property
    def spoken(self) -> str:
        """The row within a sentence: ``rotary at lr 0.001``."""
        known = {**self.others, **self.outcomes[0].run.picked}
        values = ", ".join(f"{last_word(key)} {value}" for key, value in known.items())
        return f"{self.scheme} at {values}" if values else self.scheme

    @property
    def finished(self) -> tuple[Outcome, ...]:
        """The runs that have results."""
        return tuple(outcome for outcome in self.outcomes if outcome.ok)

    def mean(self, cost: Quantity) -> float | None:
        """Mean over the runs that have results; None where none tells."""
        values = [value for o in self.finished if (value := cost(o)) is not None]
        return statistics.fmean(values) if values else None

    def times(self, cost: Quantity, base: Row) -> float | None:
        """A cost as a multiple of another row's, over the seeds for which both are known."""
        ours = {o.run.seed: value for o in self.finished if (value := cost(o)) is not None}
        theirs = {o.run.seed: value for o in base.finished if (value := cost(o)) is not None}
        both = [seed for seed in ours if seed in theirs]
        whole = sum(theirs[seed] for seed in both)
        return sum(ours[seed] for seed in both) / whole if whole else None


@dataclass(frozen=True)
class Summary:
    """The table of one task: rows of schemes, columns of splits, one metric.

    Args:
        sequences: test sequences of a split, of each seed.
        baseline: label of a scheme or of a row; None: the first.
        further: the same of other metrics, where they were asked for.
        headline: that of the headline metric, where this is one of its ``further``.
    """

    task: str
    metric: Metric
    splits: tuple[str, ...]
    rows: tuple[Row, ...]
    sequences: int
    baseline: str | None = None
    further: tuple[Summary, ...] = ()
    headline: Summary | None = None

    @property
    def is_headline(self) -> bool:
        """Whether it is that of the task's headline metric."""
        return self.metric is self.rows[0].outcomes[0].run.headline

    @property
    def seeds(self) -> int:
        """The largest number of seeds of a row."""
        return max((len(row.outcomes) for row in self.rows), default=0)

    @property
    def swept(self) -> str:
        """What rows of one scheme differ in: ``lr``, ``lr and dim``; empty where nothing."""
        return " and ".join(map(last_word, self.rows[0].others))

    @property
    def best(self) -> tuple[Row, ...]:
        """Of each scheme the row with the best headline metric on the first split, in the order of
        the sweep.

        Among equal ones the lowest loss counts, as in `tune`; a row of which a seed failed is
        taken only where all of the scheme are so. All rows where one scheme alone is swept.
        """
        if self.headline is not None:
            chosen = {row.label for row in self.headline.best}
            return tuple(row for row in self.rows if row.label in chosen)
        schemes = dict[str, list[Row]]()
        for row in self.rows:
            schemes.setdefault(row.scheme, []).append(row)
        if len(schemes) == 1:
            return self.rows
        return tuple(min(rows, key=self._rank) for rows in schemes.values())

    def _rank(self, row: Row) -> tuple[bool, float, float]:
        split = self.splits[0]
        loss = row.mean(lambda outcome: LOSS.in_results(outcome.metrics[split]))
        ranks = [self.metric.rank(row.cells[split].mean), math.inf if loss is None else loss]
        value, loss = [rank if math.isfinite(rank) else math.inf for rank in ranks]
        return len(row.finished) < len(row.outcomes), value, loss

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
        alike = [one for one in self.rows if (one.scheme, one.others) == (wanted, row.others)]
        found = next(iter(named or alike), None)
        return None if found is row else found

    def against(self, row: Row, other: Row, split: str) -> Paired:
        """``row`` compared with another row, seed by seed."""
        ours, theirs = row.cells[split], other.cells[split]
        test_error = math.sqrt(self._of_test(ours) + self._of_test(theirs))
        resolution = max(self.metric.last_digit / 2, 2 * test_error)
        return paired(ours.by_seed, theirs.by_seed, resolution, self.metric.better)

    def ranked(self, split: str) -> list[Row]:
        """The rows that have a mean on a split, the best first; behind the others those with fewer
        than `LEAST_SEEDS` values, of which nothing can be shown."""
        rows = [row for row in self.rows if math.isfinite(row.cells[split].mean)]

        def order(row: Row) -> tuple[bool, float]:
            cell = row.cells[split]
            few = self.seeds >= LEAST_SEEDS > len(cell.values)
            return few, self.metric.rank(cell.mean)

        return sorted(rows, key=order)

    def standing(self, split: str) -> dict[str, str]:
        """Label → ``best`` (by its mean) or ``tied`` (it cannot be told from that one).

        If no row can be told from the best, nothing is marked; so it is with fewer than
        `LEAST_SEEDS` seeds.
        """
        if self.seeds < LEAST_SEEDS:
            return {}
        rows = self.ranked(split)
        best, others = rows[:1], rows[1:]
        tied = [row for row in others if self.against(row, best[0], split).verdict != "worse"]
        if len(tied) == len(others):
            return {}
        return {best[0].label: "best"} | {row.label: "tied" for row in tied}

    def _of_test(self, cell: Cell) -> float:
        """Variance that the choice of test sequences adds to a cell's mean.

        Known for shares, and too large where a sequence has several scored tokens.
        """
        if not self.metric.share or not math.isfinite(cell.mean):
            return 0.0
        return max(0.0, cell.mean * (1 - cell.mean) / self.sequences)

    def text(self, row: Row, split: str) -> str:
        """``12.3 ± 0.4``, ``12.3 (1 of 3)`` if seeds failed, ``failed``, ``-`` if not measured."""
        return " ".join(self.texts(row, split))

    def texts(self, row: Row, split: str) -> list[str]:
        """`text` in its parts: the number, and how many seeds have one if not all have."""
        cell, seeds = row.cells[split], len(row.outcomes)
        if not cell.values:
            return [NOTHING if row.finished else "failed"]
        mean, std = self.metric.text(cell.mean), self.metric.text(cell.std)
        text = f"{mean} ± {std}" if len(cell.values) > 1 else mean
        some = len(cell.values) < seeds
        return [text, f"({len(cell.values)} of {seeds})"] if some else [text]


def spread_text(summary: Summary) -> str:
    """``one seed``, or ``mean ± std over 3 seeds``."""
    return "one seed" if summary.seeds == 1 else f"mean ± std over {summary.seeds} seeds"


def summarise(
    outcomes: Sequence[Outcome], baseline: str | None = None, metrics: Sequence[Metric] = ()
) -> list[Summary]:
    """One summary per task of the sweep, rows and tasks in the order of the sweep.

    Args:
        baseline: label of a scheme or of a row; None: the first.
        metrics: those beside the task's headline metric; where one says nothing about a task it is
            left out.
    """
    tasks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tasks.setdefault(outcome.run.task, []).append(outcome)
    return [_summary(task, members, baseline, metrics) for task, members in tasks.items()]


def _summary(
    name: str, outcomes: Sequence[Outcome], baseline: str | None, metrics: Sequence[Metric]
) -> Summary:
    run = outcomes[0].run
    task, test = build_task(run.config), run.config.evaluate
    sequences = test.batches * test.batch_size
    others = [one for one in metrics if one is not run.headline and one.fits(task)]
    headline, *further = (
        Summary(name, one, run.splits, _rows(outcomes, run.splits, one), sequences, baseline)
        for one in (run.headline, *others)
    )
    return replace(headline, further=tuple(replace(one, headline=headline) for one in further))


def _rows(outcomes: Sequence[Outcome], splits: Sequence[str], metric: Metric) -> tuple[Row, ...]:
    variants: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        variants.setdefault(outcome.run.variant, []).append(outcome)
    return tuple(
        Row(label, tuple(members), {split: _cell(members, split, metric) for split in splits})
        for label, members in variants.items()
    )


def _cell(outcomes: Sequence[Outcome], split: str, metric: Metric) -> Cell:
    values = {o.run.seed: metric.in_results(o.metrics[split]) for o in outcomes if o.ok}
    return Cell({seed: value for seed, value in values.items() if value is not None})


def bare_params(config: Config) -> int | None:
    """Parameters of the same model with position ``none``; None where flags make the scheme."""
    if config.model.position is None:
        return None
    plain = config.model.model_copy(update={"position": "none"})
    try:
        model = make_model_for(plain, make_task(config.task), device="meta")
    except FlagError:
        return None
    return sum(int(p.numel()) for p in model.parameters() if p.requires_grad)
