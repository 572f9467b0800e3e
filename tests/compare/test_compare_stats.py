"""Intervals and tests against tables, brute force and each other."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcope.compare.stats.inference import (
    bootstrap_interval,
    sign_flip_p,
    smallest_p,
    t_cdf,
    t_interval,
    t_quantile,
)

VALUES = st.lists(st.integers(-50, 50).map(lambda i: i / 8), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423)],
)
def test_students_t_is_that_of_the_tables(freedom, quantile):
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)
    assert t_cdf(quantile, freedom) == pytest.approx(0.975, abs=1e-5)


def test_the_t_interval_by_hand():
    """Mean 2, standard deviation 1, three values."""
    half = 4.302653 / math.sqrt(3)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_the_t_interval_holds_the_mean_of_normal_numbers_in_95_of_100_cases():
    draw = random.Random(0)
    cases = [t_interval([draw.gauss(1, 2) for _ in range(3)]) for _ in range(2000)]
    assert sum(low <= 1 <= high for low, high in cases) / 2000 == pytest.approx(0.95, abs=0.015)


@given(VALUES)
def test_the_bootstrap_interval_is_that_of_all_resamples(values):
    n = len(values)
    means = sorted(sum(chosen) / n for chosen in itertools.product(values, repeat=n))
    low, high = (means[math.ceil(share * len(means) - 1e-9) - 1] for share in (0.025, 0.975))
    assert bootstrap_interval(values) == pytest.approx((low, high), abs=1e-12)


def test_of_three_values_the_bootstrap_interval_is_the_range():
    assert bootstrap_interval([0.3, 0.1, 0.7]) == pytest.approx((0.1, 0.7))


def test_beyond_eight_values_it_is_drawn_and_yet_repeatable():
    values = [random.Random(i).gauss(0, 1) for i in range(40)]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    mean = sum(values) / 40
    error = math.sqrt(sum((v - mean) ** 2 for v in values)) / 40
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.04)


@given(VALUES)
def test_the_sign_flip_test_is_that_of_all_flips(values):
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product([-1, 1], repeat=len(values))
    ]
    reached = sum(one >= abs(sum(values)) for one in sums)
    assert sign_flip_p(values) == pytest.approx(reached / len(sums))


@pytest.mark.parametrize(("n", "p"), [(3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_few_differences_cannot_give_a_small_p(n, p):
    assert sign_flip_p([1.0 + i for i in range(n)]) == smallest_p(n) == p


def test_many_differences_are_flipped_at_random():
    draw = random.Random(1)
    assert sign_flip_p([draw.gauss(0, 1) for _ in range(30)]) > 0.05
    assert sign_flip_p([draw.gauss(2, 1) for _ in range(30)]) == smallest_p(30)
