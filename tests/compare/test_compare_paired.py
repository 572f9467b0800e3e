"""What may be said of two schemes: better, worse, or not distinguishable."""

import random

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
        ((), "too few seeds"),
    ],
)
def test_verdicts(differences, verdict):
    assert Paired(differences, resolution=0.02).verdict == verdict


def test_one_seed_has_no_interval_and_no_p():
    assert (Paired((0.1,), 0.0).interval, Paired((0.1,), 0.0).p) == (None, None)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_equal_schemes_are_told_apart_in_at_most_one_of_twenty_comparisons(n):
    draw = random.Random(n)
    trials = [Paired(tuple(draw.gauss(0, 1) for _ in range(n)), 0.0) for _ in range(1500)]
    wrong = sum(one.verdict in ("better", "worse") for one in trials)
    assert 0.02 < wrong / 1500 < 0.066
