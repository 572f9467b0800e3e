"""Statistics of a few numbers: intervals of a mean, a test of paired differences, a verdict.

Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 13 and 15; Student's
distribution as a finite sum: Abramowitz and Stegun, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
LEAST_SEEDS = 3
"""Fewer pairs than that have no spread to judge by, whatever a formula makes of them."""
DRAWS = 10_000
MOST_EXACT_RESAMPLES, MOST_EXACT_FLIPS = 8, 16
"""So many numbers are resampled or flipped in all ways; more are drawn at random."""

Interval = tuple[float, float]
Floats = NDArray[np.float64]


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """The percentile bootstrap interval of the mean.

    Up to `MOST_EXACT_RESAMPLES` values it comes from all resamples, and no random number is drawn.
    With three values it is their range: a resample takes the lowest thrice in 1 of 27 cases.
    """
    n, array = len(values), np.asarray(values, dtype=np.float64)
    if n <= MOST_EXACT_RESAMPLES:
        counts, weights = _resamples(n)
    else:
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        counts, weights = drawn.astype(np.float64), np.full(DRAWS, 1 / DRAWS)
    means = counts @ array / n
    order = np.argsort(means, kind="stable")
    reached = np.cumsum(weights[order])
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    places = np.minimum(np.searchsorted(reached, ends), len(means) - 1)
    low, high = means[order][places]
    return float(low), float(high)


@functools.cache
def _resamples(n: int) -> tuple[Floats, Floats]:
    """How often each of ``n`` values is in each resample, and the probability of the resample."""
    rows = list(itertools.combinations_with_replacement(range(n), n))
    counts = np.array([[row.count(i) for i in range(n)] for row in rows], dtype=np.float64)
    ways = [math.factorial(n) / math.prod(map(math.factorial, map(int, row))) for row in counts]
    return counts, np.array(ways) / n**n


def t_interval(values: Sequence[float]) -> Interval:
    """The interval of the mean that holds if the values are normal; at least two of them."""
    n, array = len(values), np.asarray(values, dtype=np.float64)
    half = t_quantile((1 + LEVEL) / 2, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return float(array.mean()) - half, float(array.mean()) + half


def t_quantile(probability: float, freedom: int) -> float:
    """The t that Student's distribution stays below with a probability of ½ or more."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return high


def t_cdf(t: float, freedom: int) -> float:
    """Probability that Student's t with so many degrees of freedom is below ``t`` ≥ 0."""
    theta = math.atan(t / math.sqrt(freedom))
    cos2, odd = math.cos(theta) ** 2, freedom % 2 == 1
    term = math.cos(theta) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    inside = math.sin(theta) * total
    return 0.5 + (theta + inside) / math.pi if odd else 0.5 + inside / 2


def t_test_p(values: Sequence[float]) -> float:
    """Two-sided p of "the mean is 0" that holds if the values are normal; at least two of them.

    It is below 1 − `LEVEL` where `t_interval` leaves out 0.
    """
    n, array = len(values), np.asarray(values, dtype=np.float64)
    error, mean = float(array.std(ddof=1)) / math.sqrt(n), abs(float(array.mean()))
    if error == 0:
        return 0.0 if mean else 1.0
    return 2 * (1 - t_cdf(mean / error, n - 1))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of "the sign of each difference is a coin's".

    The share of all ways to flip the signs under which the sum is as far from 0 as it is; up to
    `MOST_EXACT_FLIPS` differences all are tried, beyond that `DRAWS` are drawn.
    """
    n, array = len(differences), np.asarray(differences, dtype=np.float64)
    reached = abs(float(array.sum())) * (1 - 1e-9)
    if n <= MOST_EXACT_FLIPS:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ array) >= reached))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(DRAWS, n))
    return float((1 + np.sum(np.abs(signs @ array) >= reached)) / (1 + DRAWS))


def smallest_p(n: int) -> float:
    """The least that `sign_flip_p` can be: two of the 2ⁿ ways are as far from 0 as the furthest."""
    return 2 / 2**n if n <= MOST_EXACT_FLIPS else 1 / (1 + DRAWS)


Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]


@dataclass(frozen=True)
class Paired:
    """The differences of a scheme to another, over the seeds that both have.

    Args:
        differences: one per seed.
        resolution: differences of means up to this say nothing: the last digit that is shown, and
            what the choice of test sequences, which all seeds share, adds.
        better: whether ``"lower"`` or ``"higher"`` numbers are.
    """

    differences: tuple[float, ...]
    resolution: float
    better: Literal["lower", "higher"] = "lower"

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
    def p_t(self) -> float | None:
        """Of the t-test, two-sided; None for fewer than two pairs."""
        return t_test_p(self.differences) if self.seeds > 1 else None

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
        ``too few seeds`` for fewer pairs than `LEAST_SEEDS`.
        """
        interval, p = self.interval, self.p
        if self.seeds < LEAST_SEEDS or interval is None or p is None:
            return "too few seeds"
        low, high = interval
        apart = low > 0 or high < 0
        rare = p <= max(1 - LEVEL, smallest_p(self.seeds)) * (1 + 1e-9)
        if not (apart and rare and self.resolved):
            return "not distinguishable"
        return "better" if (self.mean < 0) == (self.better == "lower") else "worse"


def paired(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    resolution: float,
    better: Literal["lower", "higher"] = "lower",
) -> Paired:
    """The differences of two mappings of seed → value."""
    seeds = [seed for seed in ours if seed in theirs]
    both = [(ours[seed], theirs[seed]) for seed in seeds]
    finite = [(a, b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
    return Paired(tuple(a - b for a, b in finite), resolution, better)
