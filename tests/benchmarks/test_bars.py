"""What a bar says of its ratio."""

import pytest

from benchmarks.measure import Bar


@pytest.mark.parametrize(
    ("bar", "met", "verdict"),
    [
        (Bar("x", 1.1, 1.4, 1.2), True, "met"),
        (Bar("x", 1.3, 1.4, 1.2), True, "met, goal missed"),
        (Bar("x", 1.5, 1.4, 1.2), False, "NOT MET"),
        (Bar("x", 28.0, 22, 27, at_least=True), True, "met"),
        (Bar("x", 21.0, 22, 27, at_least=True), False, "NOT MET"),
        (Bar("x", 8.0, 8.8, growth=8), True, "met: linear"),
        (Bar("x", 7.1, 8.8, growth=8), True, "met: sublinear"),
        (Bar("x", 8.9, 8.8, growth=8), False, "NOT MET"),
        (Bar("x", 1.4, None, 1.3), True, "goal missed"),
        (Bar("x", 1.2, None, 1.3), True, ""),
    ],
)
def test_verdicts(bar, met, verdict):
    assert bar.met == met
    assert bar.verdict == verdict
    assert str(bar).endswith(verdict)
