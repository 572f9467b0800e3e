"""The lines of the pictures: over steps, length and position; and the axes they are drawn on."""

import json
import math

import pytest
from compare_runs import outcome, outcomes
from hypothesis import given
from hypothesis import strategies as st

from xcope.compare import summarise
from xcope.compare.report import svg
from xcope.compare.report.curves import (
    learning_lines,
    length_lines,
    length_splits,
    line,
    position_lines,
    position_splits,
)

STRETCHED = {"task": "flip_flop", "options": {"instructions": 8, "stretch": 4}}


def test_a_line_is_the_mean_and_the_range_where_all_seeds_are():
    one = line("rotary", [{1: 0.5, 2: 0.3, 3: 0.1}, {1: 0.7, 3: 0.3}])
    assert (one.x, one.low, one.high, one.seeds) == ((1, 3), (0.5, 0.1), (0.7, 0.3), 2)
    assert one.mean == pytest.approx((0.6, 0.2))
    assert not line("none", []).shown


def test_the_curve_over_length_has_the_splits_that_differ_in_length_alone():
    errors = {"in_distribution": 0.1, "dense": 0.9, "longer_2x": 0.2, "longer_4x": 0.4}
    (summary,) = summarise(outcomes({"none": [errors, errors]}, **STRETCHED))
    assert length_splits(summary) == {"in_distribution": 16, "longer_2x": 32, "longer_4x": 64}
    (one,) = length_lines(summary)
    assert (one.x, one.mean) == ((16, 32, 64), (0.1, 0.2, 0.4))


def test_a_task_of_one_length_has_no_curve_over_length():
    errors = {"in_distribution": 0.1, "dense": 0.2, "sparse": 0.3}
    (summary,) = summarise(outcomes({"none": [errors]}))
    assert (length_splits(summary), length_lines(summary)) == ({}, [])


def test_the_curve_over_position_lies_in_the_middle_of_the_bins_that_have_a_value():
    curve = {"metric": "error", "edges": [0, 2, 4, 6, 7], "values": [None, 0.2, 0.4, 0.6]}
    single = {"metric": "error", "edges": [0, 2, 4], "values": [None, 0.2]}
    rest = {"by_position": {"near": curve, "far": single}}
    (summary,) = summarise(outcomes({"none": [0.1, 0.1]}, **rest))
    assert position_splits(summary) == {"near": "error"}
    (one,) = position_lines(summary, "near")
    assert (one.x, one.mean, one.seeds) == ((2.5, 4.5, 6.0), (0.2, 0.4, 0.6), 2)


def test_runs_that_were_not_measured_by_position_have_no_curve():
    (summary,) = summarise([outcome("none", error=0.1)])
    assert position_splits(summary) == {}


def test_learning_curves_come_from_the_runs_metrics(tmp_path):
    made = outcomes({"none": [0.1, None]}, folder=tmp_path)
    for one in made:
        one.run.folder.mkdir()
        points = [{"step": step, "loss": 1 / step} for step in (1, 2, 4)]
        text = "".join(json.dumps(point) + "\n" for point in points)
        (one.run.folder / "metrics.jsonl").write_text(text)
    (summary,) = summarise(made)
    (one,) = learning_lines(summary)
    assert (one.x, one.mean, one.seeds) == ((1, 2, 4), (1.0, 0.5, 0.25), 1)


POSITIVE = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5)


@given(POSITIVE)
def test_axes_hold_all_their_numbers_and_their_ticks_rise(values):
    for axis in (svg.linear(values, "x", str), svg.logarithmic(values, "x")):
        places = [axis.at(v) for v in sorted(values)]
        assert places == sorted(places)
        assert all(0 <= place <= 1 for place in places)
        ticks = [value for value, _ in axis.ticks]
        assert ticks == sorted(set(ticks))
        assert all(axis.low - 1e-9 <= v <= axis.high * (1 + 1e-9) for v in ticks)


def test_an_axis_begins_at_0_unless_all_numbers_are_far_from_it():
    assert svg.linear([0.1, 0.9], "x", str).low == 0
    assert 1.5 < svg.linear([2.2, 2.4], "x", str).low <= 2.2
    assert svg.logarithmic([0.1, 10.0], "x").at(1.0) == pytest.approx(0.5)


def test_long_lines_are_thinned_and_keep_their_ends():
    steps = range(1, 1001)
    one = line("none", [{s: 1 / s for s in steps}])
    axis = svg.linear([0, 1000], "step", str)
    drawn = svg.line_chart("a", [one], [svg.Look("#123456", ())], axis, axis)
    (points,) = [part.split('"')[0] for part in drawn.split('<polyline points="')[1:]]
    assert len(points.split()) <= svg.MOST_POINTS + 1
    assert float(points.split()[-1].split(",")[0]) == svg.WIDTH - svg.RIGHT
    assert math.isfinite(float(points.split()[0].split(",")[1]))
