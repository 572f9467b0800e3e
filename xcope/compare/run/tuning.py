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
from xcope.compare.run.results import Outcome, write_csv
from xcope.config import Config, expand_tuning

Cell = tuple[str, str]
"""Task and variant: what has a pick of its own."""


@dataclass(frozen=True)
class Trial:
    """A tuning run.

    Args:
        run: it is measured on one split, in distribution.
        tried: key → value of what is tuned, as text.
        cell: whose pick it is for.
    """

    run: Run
    tried: Mapping[str, str]
    cell: Cell

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
    def score(self) -> float:
        """Mean of the headline metric; infinite where a seed failed."""
        return self._mean(self.outcomes[0].run.metric)

    @property
    def order(self) -> tuple[float, float]:
        """What is picked is lowest in this: the metric, then the loss."""
        return self.score, self._mean("loss")

    def _mean(self, metric: str) -> float:
        if self.failed:
            return math.inf
        splits = [next(iter(outcome.metrics.values())) for outcome in self.outcomes]
        mean = statistics.fmean(split[metric] for split in splits)
        return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True)
class Pick:
    """What was tried for one scheme on one task, in the order of the grid."""

    task: str
    variant: str
    candidates: tuple[Candidate, ...]

    @property
    def picked(self) -> Candidate | None:
        """The first of the lowest in `Candidate.order`; None where every one failed."""
        best = min(self.candidates, key=lambda one: one.order)
        return best if math.isfinite(best.score) else None

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
        Trial(run := replace(one, swept=swept), tried, (run.task, run.variant))
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
    cells: dict[Cell, dict[tuple[str, ...], list[Trial]]] = {}
    for trial in trials:
        values = tuple(trial.tried.values())
        cells.setdefault(trial.cell, {}).setdefault(values, []).append(trial)
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
            ready.append(replace(run, config=run.config.model_copy(update={"train": train})))
            continue
        ready.append(run)
        if pick is not None:
            failed = pick.candidates[0].failed
            why = failed[0].reason if failed else "the metric is not finite"
            reasons[run.name] = f"no value of tune works: {why}"
    return ready, reasons


def write_tuning(path: Path, picks: Sequence[Pick]) -> None:
    """Write every tuning run, one a line; the same seeds give the same bytes."""
    keys = list(picks[0].candidates[0].tried)
    header = ["run", "task", "scheme", *keys, "seed", "status", "split", "metric", "value"]
    rows = (row for pick in picks for row in _rows(pick))
    write_csv(path, [*header, "picked", "reason"], rows)


def _rows(pick: Pick) -> Iterator[list[object]]:
    for candidate in pick.candidates:
        chosen = "yes" if candidate is pick.picked else "no"
        for one in candidate.outcomes:
            run, metric = one.run, one.run.metric
            split = next(iter(one.metrics), "")
            value = repr(one.metrics[split][metric]) if split else ""
            head = [run.name, pick.task, pick.variant, *candidate.tried.values(), run.seed]
            yield [*head, one.status, split, metric if split else "", value, chosen, one.reason]
