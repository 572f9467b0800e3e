"""``tune``: the value of a training key that each scheme is given, picked on validation seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xcope.compare.run.plan import Run, as_text, combinations, make_runs
from xcope.compare.run.results import Outcome
from xcope.config import Config, expand_tuning
from xcope.training.metrics import LOSS, Metric


@dataclass(frozen=True)
class Trial:
    """A tuning run.

    Args:
        run: it is measured on one split, in distribution.
        tried: key → value of what is tuned, as text.
    """

    run: Run
    tried: Mapping[str, str]

    @property
    def values(self) -> dict[str, Any]:
        """Name in ``train`` → value."""
        names = [key.removeprefix("train.") for key in self.tried]
        return {name: getattr(self.run.config.train, name) for name in names}


@dataclass(frozen=True)
class Candidate:
    """One combination of values of one scheme, over the tuning seeds.

    Args:
        values: name in ``train`` → value.
    """

    tried: Mapping[str, str]
    values: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that have no results."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    @property
    def metric(self) -> Metric:
        """The task's headline metric, by which it is judged."""
        return self.outcomes[0].run.headline

    def mean(self, metric: Metric) -> float:
        """Mean of a metric over the seeds; NaN where one failed."""
        if self.failed:
            return math.nan
        splits = [next(iter(outcome.metrics.values())) for outcome in self.outcomes]
        return statistics.fmean(split[metric.name] for split in splits)

    @property
    def score(self) -> float:
        """Mean of the headline metric over the seeds; NaN where one failed."""
        return self.mean(self.metric)

    @property
    def order(self) -> tuple[float, float]:
        """Sort key: the best headline metric is first, among equals the lowest loss."""
        ranks = [self.metric.rank(self.score), LOSS.rank(self.mean(LOSS))]
        first, second = [rank if math.isfinite(rank) else math.inf for rank in ranks]
        return first, second


@dataclass(frozen=True)
class Pick:
    """What was tried for one scheme on one task, in the order of the grid."""

    task: str
    variant: str
    candidates: tuple[Candidate, ...]

    @property
    def picked(self) -> Candidate | None:
        """The first in `Candidate.order`; None where every one failed."""
        best = min(self.candidates, key=lambda one: one.order)
        return best if math.isfinite(best.order[0]) else None

    @property
    def at_edge(self) -> tuple[str, ...]:
        """Keys whose picked value is the least or the largest that was tried: another may be
        better."""
        if self.picked is None:
            return ()
        return tuple(
            f"train.{name}"
            for name, value in self.picked.values.items()
            if _is_end(value, [one.values[name] for one in self.candidates])
        )


def _is_end(value: Any, tried: Sequence[Any]) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in tried)
    return numbers and len(set(tried)) > 1 and value in (min(tried), max(tried))


def plan_tuning(config: Config, out: Path) -> list[Trial]:
    """The tuning runs in the order of `expand_tuning`, in folders under ``out/tuning``."""
    if config.tune is None:
        return []
    sweep = {key: values for key, values in config.sweep.items() if key != "train.seed"}
    pairs = [
        (swept, tried)
        for swept in combinations(sweep)
        for tried in _grid(config.tune.grid)
        for _ in config.tune.seeds
    ]
    configs = [one.model_copy(update={"out": None}) for one in expand_tuning(config, data=False)]
    named = make_runs(configs, [swept | tried for swept, tried in pairs], out / "tuning")
    return [
        Trial(replace(one, swept=swept), tried)
        for one, (swept, tried) in zip(named, pairs, strict=True)
    ]


def _grid(axes: Mapping[str, Sequence[object]]) -> Iterator[dict[str, str]]:
    for row in itertools.product(*axes.values()):
        yield {key: as_text(value) for key, value in zip(axes, row, strict=True)}


def picks(trials: Sequence[Trial], ended: Callable[[Run], Outcome]) -> list[Pick]:
    """What is picked for each scheme of each task.

    Args:
        ended: gives the outcome of a tuning run.
    """
    cells: dict[tuple[str, str], dict[tuple[str, ...], list[Trial]]] = {}
    for trial in trials:
        values = tuple(trial.tried.values())
        cells.setdefault((trial.run.task, trial.run.variant), {}).setdefault(values, []).append(
            trial
        )
    return [
        Pick(task, variant, tuple(_candidate(group, ended) for group in groups.values()))
        for (task, variant), groups in cells.items()
    ]


def _candidate(trials: Sequence[Trial], ended: Callable[[Run], Outcome]) -> Candidate:
    first = trials[0]
    return Candidate(first.tried, first.values, tuple(ended(trial.run) for trial in trials))


def with_picks(runs: Sequence[Run], picks: Sequence[Pick]) -> tuple[list[Run], dict[str, str]]:
    """The runs with the picked values, and run → reason of those for which nothing works."""
    known = {(pick.task, pick.variant): pick for pick in picks}
    ready, reasons = list[Run](), dict[str, str]()
    for run in runs:
        pick = known.get((run.task, run.variant))
        if pick is not None and pick.picked is not None:
            train = run.config.train.model_copy(update=dict(pick.picked.values))
            config = run.config.model_copy(update={"train": train})
            ready.append(replace(run, config=config, picked=pick.picked.tried))
            continue
        ready.append(run)
        if pick is not None:
            failed = pick.candidates[0].failed
            why = failed[0].reason if failed else "the metric is not finite"
            reasons[run.name] = f"no value of tune works: {why}"
    return ready, reasons
