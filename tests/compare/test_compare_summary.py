"""Mean ± std over seeds, and which scheme may be called the best."""

import math
import re
from io import StringIO

import pytest
from compare_runs import outcome, outcomes
from rich.console import Console

from xcope.compare import summarise, terminal_table


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
    assert summary.rows[0].seconds == 2.0
    assert summary.rows[0].params == 1000


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ({"none": [0.4], "rotary": [0.1], "cope": [0.2]}, {"rotary"}),
        ({"none": [0.4], "rotary": [0.0], "cope": [0.0]}, {"rotary", "cope"}),
        ({"none": [0.4, 0.5], "rotary": [0.1, 0.3], "cope": [0.15, 0.3]}, {"rotary", "cope"}),
        ({"none": [0.4, 0.5], "rotary": [0.1, 0.101], "cope": [0.15, 0.151]}, {"rotary"}),
        # of 10,000 sequences, 12.0 % and 12.1 % cannot be told apart
        ({"none": [0.4], "rotary": [0.121], "cope": [0.12]}, {"rotary", "cope"}),
        ({"none": [0.4], "rotary": [0.4], "cope": [0.4]}, set()),
        ({"none": [0.4], "rotary": [None], "cope": [math.nan]}, set()),
        ({"none": [0.4], "rotary": [None], "cope": [0.2]}, {"cope"}),
        ({"none": [None], "rotary": [None], "cope": [None]}, set()),
    ],
)
def test_best_is_what_is_lowest_and_what_cannot_be_told_from_it(errors, best):
    assert only(errors).best("near") == best


def test_best_differs_by_split():
    far = {"none": {"near": 0.4, "far": 0.4}, "rotary": {"near": 0.1, "far": 0.8}}
    (summary,) = summarise([outcome(scheme, error=error) for scheme, error in far.items()])
    assert (summary.best("near"), summary.best("far")) == ({"rotary"}, {"none"})


def test_a_failed_seed_is_left_out_of_the_mean_and_counted():
    summary = only({"none": [0.1, None, 0.3], "rotary": [None, None, None]})
    assert summary.text(summary.rows[0], "near") == "20.0 ± 14.1 (2 of 3)"
    assert summary.text(summary.rows[1], "near") == "failed"
    assert summary.rows[1].params is None


def test_bits_per_byte_are_no_shares():
    summary = only({"none": [2.5], "rotary": [2.25]}, metric="bits_per_byte")
    assert summary.unit == "bits per byte"
    assert summary.text(summary.rows[1], "near") == "2.250"
    assert summary.best("near") == {"rotary"}


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
    summary = only({"none": [0.4], "rotary": [0.125], "cope": [None]})
    Console(file=text, width=100, force_terminal=True).print(terminal_table(summary))
    none, rotary, cope = text.getvalue().splitlines()[-4:-1]
    assert re.search(r"\x1b\[1m +12\.5\x1b\[0m", rotary)
    assert "\x1b[1m" not in none
    assert "1,000" in none
    assert "failed" in cope
