"""Mean ± std over seeds, and which scheme may be called the best."""

import math
import re
from io import StringIO

import pytest
from compare_runs import outcome, outcomes
from rich.console import Console

from xcope.compare import summarise, terminal_table
from xcope.compare.report.columns import COLUMNS


def only(errors, **rest):
    (summary,) = summarise(outcomes(errors, **rest))
    return summary


def test_mean_and_std_over_seeds():
    summary = only({"none": [0.1, 0.2, 0.3], "rotary": [0.5]})
    row = summary.rows[0]
    cell = row.cells["near"]
    assert cell.mean == pytest.approx(0.2)
    assert cell.std == pytest.approx(0.1)
    assert summary.text(row, "near") == "20.0 ± 10.0"
    assert summary.text(summary.rows[1], "near") == "50.0"
    assert summary.rows[0].mean(COLUMNS["seconds"].of) == 2.0
    assert summary.rows[0].mean(COLUMNS["params"].of) == 1000


@pytest.mark.parametrize(
    ("errors", "best", "tied"),
    [
        ({"none": [0.4] * 3, "rotary": [0.1] * 3, "cope": [0.2] * 3}, "rotary", set()),
        ({"none": [0.4] * 3, "rotary": [0.0] * 3, "cope": [0.0] * 3}, "rotary", {"cope"}),
        # of 10,000 sequences, 12.0 % and 12.1 % cannot be told apart
        ({"none": [0.4] * 3, "rotary": [0.121] * 3, "cope": [0.12] * 3}, "cope", {"rotary"}),
        # each seed 5 points better; 5 points on average, but not of each seed
        ({"none": [0.2, 0.3, 0.4], "rotary": [0.15, 0.25, 0.35]}, "rotary", set()),
        ({"none": [0.9] * 3, "a": [0.2, 0.3, 0.4], "b": [0.35, 0.15, 0.25]}, "b", {"a"}),
        # with one seed or two nothing is shown, however far apart they lie
        ({"none": [0.9], "rotary": [0.1], "cope": [0.1]}, None, 0),
        ({"none": [0.9, 0.9], "rotary": [0.1, 0.1], "cope": [0.1, 0.3]}, None, 0),
        ({"none": [0.4] * 3, "rotary": [None] * 3, "cope": [0.2] * 3}, "cope", set()),
        # two seeds in common are too few
        ({"none": [0.9] * 3, "a": [0.1] * 3, "b": [0.3, 0.3, None]}, "a", {"b"}),
        ({"none": [0.9] * 3, "a": [None, 0.1, 0.1], "b": [0.3] * 3}, "b", {"a"}),
        ({"none": [0.4], "rotary": [0.4], "cope": [0.4]}, None, 0),
        ({"none": [0.4], "rotary": [None], "cope": [math.nan]}, None, 0),
        ({"none": [None], "rotary": [None], "cope": [None]}, None, 0),
    ],
)
def test_the_best_is_lowest_and_tied_is_what_cannot_be_told_from_it(errors, best, tied):
    """Nothing is marked where that holds for all."""
    marks = {best: "best"} | dict.fromkeys(tied, "tied") if best else {}
    assert only(errors).standing("near") == marks


def test_the_best_differs_by_split():
    far = {"none": {"near": 0.4, "far": 0.4}, "rotary": {"near": 0.1, "far": 0.8}}
    (summary,) = summarise(outcomes({scheme: [error] * 3 for scheme, error in far.items()}))
    assert summary.standing("near") == {"rotary": "best"}
    assert summary.standing("far") == {"none": "best"}


def base_labels(summary):
    bases = [summary.base(row) for row in summary.rows]
    return [base and base.label for base in bases]


def test_schemes_are_compared_with_the_first_or_with_the_one_that_is_named():
    made = outcomes({"none": [0.4], "rotary": [0.1], "cope": [0.2]})
    assert base_labels(summarise(made)[0]) == [None, "none", "none"]
    assert base_labels(summarise(made, "rotary")[0]) == ["rotary", None, "rotary"]


def test_with_other_swept_keys_the_baseline_has_the_same_values_of_them():
    made = [
        outcome(scheme, error=0.5, swept={"model.dim": dim})
        for scheme in ("none", "rotary")
        for dim in ("16", "32")
    ]
    by_scheme = [None, None, "none, dim=16", "none, dim=32"]
    assert base_labels(summarise(made, "none")[0]) == by_scheme
    one = "rotary, dim=16"
    assert base_labels(summarise(made, one)[0]) == [one, one, None, one]


def test_where_the_scheme_is_not_swept_the_first_row_is_the_baseline():
    made = [outcome("rotary", error=0.5, swept={"model.dim": dim}) for dim in ("16", "32")]
    assert base_labels(summarise(made)[0]) == [None, "rotary, dim=16"]


def test_a_failed_seed_is_left_out_of_the_mean_and_counted():
    summary = only({"none": [0.1, None, 0.3], "rotary": [None, None, None]})
    assert summary.text(summary.rows[0], "near") == "20.0 ± 14.1 (2 of 3)"
    assert summary.text(summary.rows[1], "near") == "failed"
    assert summary.rows[1].mean(COLUMNS["params"].of) is None


def test_bits_per_byte_are_no_shares():
    summary = only({"none": [2.5] * 3, "rotary": [2.25] * 3}, metric="bits_per_byte")
    assert summary.metric.heading == "bits per byte"
    assert summary.text(summary.rows[1], "near") == "2.250 ± 0.000"
    assert summary.standing("near") == {"rotary": "best"}


def test_other_swept_keys_make_rows_and_tasks_make_tables():
    made = [
        outcome("none", error=0.5, swept={"model.dim": dim, "task.tokens": tokens})
        for tokens in ("4", "8")
        for dim in ("16", "32")
    ]
    tables = summarise(made)
    assert [s.task for s in tables] == ["selective_copy(tokens=4)", "selective_copy(tokens=8)"]
    assert [row.label for row in tables[0].rows] == ["none, dim=16", "none, dim=32"]


def test_the_terminal_table_shows_the_best_in_bold():
    text = StringIO()
    summary = only({"none": [0.4] * 3, "rotary": [0.125] * 3, "cope": [None]})
    Console(file=text, width=100, force_terminal=True).print(terminal_table(summary))
    none, rotary, cope = text.getvalue().splitlines()[-4:-1]
    assert re.search(r"\x1b\[1m *12\.5 ± 0\.0\x1b\[0m", rotary)
    assert "\x1b[1m" not in none
    assert "1,000" in none
    assert "failed" in cope
