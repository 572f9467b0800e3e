"""Two schemes compared seed by seed, and what may be said of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from xcope.compare.stats.inference import LEVEL, Interval, sign_flip_p, smallest_p, t_interval

Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]


@dataclass(frozen=True)
class Paired:
    """The differences of a scheme to another, over the seeds that both have.

    Args:
        differences: one per seed; below 0 where the scheme is better.
        resolution: differences of means up to this say nothing: the last digit that is shown, and
            what the choice of test sequences, which all seeds share, adds.
    """

    differences: tuple[float, ...]
    resolution: float

    @property
    def seeds(self) -> int:
        """Number of pairs."""
        return len(self.differences)

    @property
    def mean(self) -> float:
        """NaN without a pair."""
        return statistics.fmean(self.differences) if self.differences else math.nan

    @property
    def interval(self) -> Interval | None:
        """The t-interval of the mean; None for fewer than two pairs."""
        return t_interval(self.differences) if self.seeds > 1 else None

    @property
    def p(self) -> float | None:
        """Of the exact sign-flip test, two-sided; None for fewer than two pairs."""
        return sign_flip_p(self.differences) if self.seeds > 1 else None

    @property
    def resolved(self) -> bool:
        """Whether the mean is further from 0 than `resolution`."""
        return abs(self.mean) > self.resolution

    @property
    def verdict(self) -> Verdict:
        """``better`` or ``worse`` where every sign of it is there, else ``not distinguishable``.

        The t-interval leaves 0 out, the exact test gives a p of at most 1 − `LEVEL` or, with too
        few seeds for that, the least that it can give, and the difference is `resolved`.
        ``too few seeds`` where there is no spread to judge by.
        """
        interval, p = self.interval, self.p
        if interval is None or p is None:
            return "too few seeds"
        low, high = interval
        apart = low > 0 or high < 0
        rare = p <= max(1 - LEVEL, smallest_p(self.seeds)) * (1 + 1e-9)
        if not (apart and rare and self.resolved):
            return "not distinguishable"
        return "better" if self.mean < 0 else "worse"


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], resolution: float) -> Paired:
    """The differences of two mappings of seed → value."""
    seeds = [seed for seed in ours if seed in theirs]
    both = [(ours[seed], theirs[seed]) for seed in seeds]
    finite = [(a, b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
    return Paired(tuple(a - b for a, b in finite), resolution)
