"""What may be said of two schemes: better, worse, or not distinguishable."""

import math
import random
import statistics

import pytest

from xcope.compare.stats.inference import Paired, paired


def test_only_seeds_that_both_have_are_compared():
    pair = paired({0: 0.5, 1: 0.4, 2: float("nan"), 3: 0.1}, {1: 0.1, 0: 0.1, 2: 0.3}, 0.0)
    assert pair.differences == pytest.approx((0.4, 0.3))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((-0.30, -0.28, -0.33), "better"),
        ((0.30, 0.28, 0.33), "worse"),
        ((-0.30, -0.05, -0.02), "not distinguishable"),  # the interval holds 0
        ((-0.30, 0.01, -0.33), "not distinguishable"),  # another sign
        ((-0.010, -0.010, -0.011), "not distinguishable"),  # below the resolution
        ((0.0, 0.0, 0.0), "not distinguishable"),
        ((-0.3,), "too few seeds"),
        ((-0.3, -0.3), "too few seeds"),
        ((), "too few seeds"),
    ],
)
def test_verdicts(differences, verdict):
    assert Paired(differences, resolution=0.02).verdict == verdict


def test_one_seed_has_no_interval_and_no_p():
    one = Paired((0.1,), 0.0)
    assert (one.interval, one.p, one.p_t) == (None, None, None)


@pytest.mark.parametrize(
    ("n", "t", "p"),
    [(2, 12.706, 0.05), (3, 4.303, 0.05), (3, 9.925, 0.01), (5, 2.132, 0.1), (12, 2.201, 0.05),
     (30, 3.659, 0.001)],
)  # fmt: skip
def test_the_p_of_the_t_test_is_that_of_students_table(n, t, p):
    draw = random.Random(n)
    values = [draw.gauss(0, 1) for _ in range(n)]
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(n)
    shifted = tuple(value - mean - t * error for value in values)
    assert Paired(shifted, 0.0).p_t == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize(("values", "p"), [((0.2, 0.2, 0.2), 0.0), ((0.0, 0.0, 0.0), 1.0)])
def test_without_spread_the_t_test_knows_0_from_something_else(values, p):
    assert Paired(values, 0.0).p_t == p


@pytest.mark.parametrize("n", [3, 5, 8])
def test_equal_schemes_are_told_apart_in_at_most_one_of_twenty_comparisons(n):
    draw = random.Random(n)
    trials = [Paired(tuple(draw.gauss(0, 1) for _ in range(n)), 0.0) for _ in range(1500)]
    wrong = sum(one.verdict in ("better", "worse") for one in trials)
    assert 0.02 < wrong / 1500 < 0.066
