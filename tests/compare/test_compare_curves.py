"""The lines of the pictures: over steps, length and position; and the axes they are drawn on."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from compare_runs import outcome, outcomes
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from xcope.compare import summarise
from xcope.compare.report.charts import MOST_POINTS, linear, logarithmic, run_charts
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


def test_a_seed_that_was_not_measured_leaves_the_curve_over_length_to_the_others():
    errors = {"in_distribution": 0.1, "longer_2x": 0.2, "longer_4x": 0.4}
    whole, other = outcomes({"none": [errors, errors]}, **STRETCHED)
    for missing, x, seeds in ((errors, (16, 32, 64), 1), (["longer_2x"], (16, 64), 2)):
        partly = replace(other, metrics=other.metrics | {split: {} for split in missing})
        (summary,) = summarise([whole, partly])
        (one,) = length_lines(summary)
        assert (one.x, one.seeds) == (x, seeds)


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


def places(scale, values):
    """Where numbers lie between the ends of an axis of this scale, 0 … 1."""
    axes = Figure().subplots()
    scale.set(axes, "x")
    points = axes.transData.transform([(value, 0.5) for value in values])
    return axes.transAxes.inverted().transform(points)[:, 0].tolist()


@given(POSITIVE)
def test_axes_hold_all_their_numbers_and_their_ticks_rise(values):
    for scale in (linear(values, str), logarithmic(values)):
        at = places(scale, sorted(values))
        assert at == sorted(at)
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in at)
        ticks = list(scale.ticks)
        assert ticks == sorted(set(ticks))
        assert all(scale.low - 1e-9 <= v <= scale.high * (1 + 1e-9) for v in ticks)


def test_an_axis_begins_at_0_unless_all_numbers_are_far_from_it():
    assert linear([0.1, 0.9], str).low == 0
    assert 1.5 < linear([2.2, 2.4], str).low <= 2.2
    assert places(logarithmic([0.1, 10.0]), [1.0]) == pytest.approx([0.5])


def test_a_logarithmic_axis_has_three_ticks_or_more():
    assert logarithmic([0.004, 30]).ticks == (0.01, 0.1, 1, 10)
    assert logarithmic([0.05, 3.5]).ticks == pytest.approx((0.05, 0.1, 0.2, 0.5, 1, 2))
    assert len(logarithmic([2.1, 2.9]).ticks) >= 3


def test_long_lines_are_thinned_and_keep_their_ends(tmp_path):
    made = outcomes({"none": [0.1]}, folder=tmp_path)
    made[0].run.folder.mkdir()
    text = "".join(json.dumps({"step": s, "loss": 1 / s}) + "\n" for s in range(1, 1001))
    (made[0].run.folder / "metrics.jsonl").write_text(text)
    (summary,) = summarise(made)
    (learning,) = (chart for chart in run_charts(summary) if chart.kind == "learning")
    svg = ElementTree.fromstring(learning.svg)
    (drawn,) = svg.findall("g[@data-series]/path")
    x, y = drawn.get("d").split()[1::2], drawn.get("d").split()[2::2]
    assert len(x) <= MOST_POINTS + 1
    # what frames the line ends where it does
    assert float(x[-1]) == max(float(path.get("d").split()[3]) for path in svg.findall("path"))
    assert math.isfinite(float(y[0]))
