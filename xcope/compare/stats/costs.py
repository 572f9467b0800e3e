"""What a scheme costs: parameters of its own, time and memory next to the baseline's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xcope.compare.run.results import Outcome
from xcope.compare.stats.summary import Row, Summary
from xcope.config import Config
from xcope.config.build import make_model_for, make_task
from xcope.errors import FlagError


@dataclass(frozen=True)
class Costs:
    """What one row costs; None where it is not known.

    Args:
        params: parameters.
        own: those more than the same model with position ``none`` has.
        seconds: mean training time of a run.
        time: time of a step as a multiple of the baseline's, over the seeds that both have.
        peak_bytes: mean peak memory of a run.
        memory: peak memory as a multiple of the baseline's, likewise.
    """

    params: int | None
    own: int | None
    seconds: float | None
    time: float | None
    peak_bytes: float | None
    memory: float | None


def costs(summary: Summary, row: Row) -> Costs:
    """The costs of a row."""
    base = summary.base(row) or row
    bare = bare_params(row.outcomes[0].run.config)
    own = None if row.params is None or bare is None else row.params - bare
    return Costs(
        params=row.params,
        own=own,
        seconds=row.seconds,
        time=_ratio(row, base, lambda outcome: outcome.pace),
        peak_bytes=row.peak_bytes,
        memory=_ratio(row, base, lambda outcome: outcome.peak_bytes),
    )


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


def _ratio(row: Row, base: Row, cost: Callable[[Outcome], float | None]) -> float | None:
    """Of the sums over the seeds for which both rows have the cost."""
    ours, theirs = _by_seed(row, cost), _by_seed(base, cost)
    both = [seed for seed in ours if seed in theirs]
    whole = sum(theirs[seed] for seed in both)
    return sum(ours[seed] for seed in both) / whole if whole else None


def _by_seed(row: Row, cost: Callable[[Outcome], float | None]) -> dict[int, float]:
    values = [(outcome.run.seed, cost(outcome)) for outcome in row.finished]
    return {seed: value for seed, value in values if value is not None}
