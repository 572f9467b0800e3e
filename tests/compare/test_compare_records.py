"""A metric and a column are one record each: what is registered here is found in every medium."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_runs import TINY, outcome, outcomes
from rich.console import Console

from xcope.compare import CompareError, compare, plan, summarise, terminal_table
from xcope.compare.comparison import Comparison
from xcope.compare.report import columns
from xcope.compare.report.columns import COLUMNS, Column, times
from xcope.compare.report.findings import Findings
from xcope.compare.report.wording import about_test
from xcope.compare.report.write import write
from xcope.compare.run.pool import Circumstances
from xcope.compare.run.tuning import Candidate, Pick
from xcope.config import build_task, load_config
from xcope.errors import FlagError
from xcope.tasks import tasks
from xcope.training import metrics, train
from xcope.training.metrics import METRICS, Metric, Tally, metric_called


@pytest.fixture
def doubt():
    """A metric: the share of scored tokens on which no answer has half of the probability."""
    one = Metric(
        "doubt",
        lambda answers: answers.logits.softmax(dim=-1).amax(dim=-1) < 0.5,
        share=True,
        digits=2,
        better="higher",
    )
    yield metrics.register(one)
    del METRICS["doubt"]


@pytest.fixture
def updates():
    """A column: steps for each parameter."""
    one = Column(
        "updates",
        "steps per parameter",
        lambda run: run.steps / run.params,
        text="{:.4f}".format,
        beside=times(lambda run: run.steps / run.params),
        note=lambda runs: f"Steps per parameter say little ({len(runs)} runs).",
        tabled=False,
        timed=False,
    )
    yield columns.register(one)
    del COLUMNS["updates"]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def printed(*tables) -> str:
    text = io.StringIO()
    for table in tables:
        Console(file=text, width=200).print(table)
    return text.getvalue()


def compared(tmp_path: Path, *show: str) -> Comparison:
    """The tiny sweep, trained in this process, where what a test registers is known."""
    file = tmp_path / "tiny.yaml"
    file.write_text(repr(TINY))  # flow-style YAML
    config = load_config(file, sweep=True)
    out = tmp_path / "out"
    for run in plan(config, out):
        train(run.config, run.folder, resume=True)
    (out / "config.yaml").write_text(config.to_yaml())
    return compare(config, out, show=show, console=Console(file=io.StringIO()))


def test_one_record_each_is_found_in_every_medium(doubt, updates, tmp_path):
    comparison = compared(tmp_path, "doubt", "updates")
    out, splits = comparison.out, ("in_distribution", "dense", "sparse")

    stored = json.loads((out / "runs" / "none-seed0" / "results.json").read_text())["splits"]
    assert all(0 <= stored[split]["doubt"] <= 1 for split in splits)
    lines = [line for line in rows(out / "results.csv") if line["metric"] == "doubt"]
    assert [float(line["value"]) for line in lines[:3]] == [stored[s]["doubt"] for s in splits]
    said = [line for line in rows(out / "summary.csv") if line["metric"] == "doubt"]
    assert [(line["scheme"], line["split"]) for line in said[:3]] == [("none", s) for s in splits]
    assert {float(line["updates"]) for line in rows(out / "timings.csv")} == {
        o.steps / o.params for o in comparison.outcomes
    }

    (summary,) = comparison.summaries
    (further,) = summary.further
    number = further.text(further.rows[0], "dense")
    steps = f"{summary.rows[0].mean(updates.of):.4f} (×1.00)"
    shown = printed(*comparison.tables)
    text = (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    for medium in (shown, text, page):
        for part in ("steps per parameter", number, steps.split(" ", maxsplit=1)[0]):
            assert part in medium, part
    assert "doubt, %" in shown
    assert steps in shown
    assert "### Doubt, %" in text
    assert f"| {steps} |" in text
    assert "Higher is better" in text
    assert "Steps per parameter say little (4 runs)." in text
    assert "<h3>Doubt, %</h3>" in page
    assert "Steps per parameter say little (4 runs)." in page
    assert "doubt, % (higher is better)" in page
    assert "steps per parameter (lower is better)" in page
    for plot in ("doubt-split-selective_copy.png", "updates-selective_copy.png"):
        assert f"](plots/{plot})" in text
        assert (out / "plots" / plot).stat().st_size > 1000


def test_what_is_not_asked_for_is_not_in_the_tables(doubt, updates, tmp_path):
    comparison = compared(tmp_path)
    for text in (
        printed(*comparison.tables),
        (comparison.out / "report.md").read_text(),
        (comparison.out / "report.html").read_text(),
        (comparison.out / "summary.csv").read_text(),
        (comparison.out / "timings.csv").read_text(),
    ):
        assert "doubt" not in text.lower()
        assert "per parameter" not in text.lower()
        assert "updates" not in text.lower()
    assert not list((comparison.out / "plots").glob("updates*"))
    # every number that was measured is in the list of all numbers
    assert {line["metric"] for line in rows(comparison.out / "results.csv")} >= {"doubt"}


def test_runs_from_before_a_metric_show_nothing_for_it(doubt, updates, tmp_path):
    errors = {"none": [{"in_distribution": 0.4}] * 2, "rotary": [{"in_distribution": 0.1}] * 2}
    made = outcomes(errors, folder=tmp_path)
    config = made[0].run.config.model_copy(update={"sweep": {"train.seed": [0, 1]}})
    summaries = summarise(made, metrics=[doubt])
    how = Circumstances("again", "cpu", 1, 1)
    write(tmp_path, Findings(config, made, summaries, (), how, (updates,)))
    said = [line for line in rows(tmp_path / "summary.csv") if line["metric"] == "doubt"]
    assert [(line["scheme"], line["seeds"], line["mean"]) for line in said] == [
        ("none", "0", ""),
        ("rotary", "0", ""),
    ]
    text = (tmp_path / "report.md").read_text()
    assert "| none | - |" in text.split("### Doubt, %")[1]
    assert re.search(r"│ rotary +│ +- │", printed(terminal_table(summaries[0].further[0], ())))
    assert 'data-value=""' in (tmp_path / "report.html").read_text()


def test_sequence_accuracy_follows_from_what_older_runs_measured():
    accuracy = metric_called("sequence_accuracy")
    made = [
        replace(one, metrics={"near": {"error": 0.1, "sequence_error": wrong}})
        for one, wrong in zip(outcomes({"none": [{"near": 0.1}]}), [0.25], strict=True)
    ]
    (summary,) = summarise(made, metrics=[accuracy])
    (further,) = summary.further
    assert further.text(further.rows[0], "near") == "75.0"


def test_where_higher_is_better_the_highest_is_best_and_above_0_is_better(doubt):
    made = outcomes({"none": [0.4] * 3, "rotary": [0.1] * 3}, metric="doubt")
    (summary,) = summarise(made)
    none, rotary = summary.rows
    assert summary.standing("near") == {"none": "best"}
    pair = summary.against(rotary, none, "near")
    assert (pair.mean, pair.verdict) == (pytest.approx(-0.3), "worse")
    assert summary.against(none, rotary, "near").verdict == "better"
    assert " ".join(about_test(summary)).startswith("Above 0 the scheme is better")


def test_tuning_picks_the_highest_where_higher_is_better(doubt):
    tried = [
        Candidate({}, {}, (replace(outcome("none", error=e, metric="doubt"), metrics=m),))
        for e, m in [
            (0.2, {"near": {"doubt": 0.2, "loss": 1}}),
            (0.3, {"near": {"doubt": 0.3, "loss": 1}}),
        ]
    ]
    assert Pick("task", "none", tuple(tried)).picked is tried[1]
    failed = Candidate({}, {}, (outcome("none", metric="doubt"),))
    assert Pick("task", "none", (failed, tried[0])).picked is tried[0]


def test_a_metric_that_says_nothing_about_a_task_is_left_out_of_its_tables():
    accuracy, bits = map(metric_called, ("sequence_accuracy", "bits_per_byte"))
    (text,) = summarise(
        [outcome("none", error=2.0, metric="bits_per_byte", task="text")], metrics=[accuracy, bits]
    )
    (copying,) = summarise([outcome("none", error=0.1)], metrics=[accuracy, bits])
    assert [one.metric.name for one in text.further] == []
    assert [one.metric.name for one in copying.further] == ["sequence_accuracy"]


def test_tokens_per_second_are_those_of_training_after_the_first_step():
    one = outcome("none", error=0.1, pace=0.25)
    batch = one.run.config.train.batch_size
    expected = batch * build_task(one.run.config).seq_len("train") / 0.25
    assert COLUMNS["tokens_per_second"].of(one) == expected
    assert COLUMNS["tokens_per_second"].written(one) == f"{expected:.0f}"
    assert COLUMNS["tokens_per_second"].written(outcome("none")) == ""


@pytest.mark.parametrize(
    ("value", "text", "signed"),
    [(0.1234, "12.3", "+12.3"), (-0.0301, "−3.0", "−3.0"), (-0.0001, "−0.0", "0.0")],
)
def test_shares_are_written_in_per_cent(value, text, signed):
    error = metric_called("error")
    assert (error.text(value), error.signed(value)) == (text, signed)


def test_names_that_nothing_has_are_refused_before_anything_is_trained(config, tmp_path):
    with pytest.raises(CompareError, match=r"--show erorr.*choose among.*did you mean 'error'"):
        compare(config, tmp_path / "x", show=["erorr"])
    assert not (tmp_path / "x").exists()
    with pytest.raises(FlagError, match=r"no metric 'erorr'.*did you mean 'error'"):
        metric_called("erorr")


def test_a_name_can_be_given_once(doubt, updates):
    elsewhere = {"__name__": "elsewhere", "metrics": metrics, "columns": columns}
    elsewhere |= {"doubt": doubt, "updates": updates}
    with pytest.raises(ValueError, match="two metrics are called 'doubt'"):
        exec("metrics.register(doubt)", elsewhere)
    with pytest.raises(ValueError, match="two columns are called 'updates'"):
        exec("columns.register(updates)", elsewhere)
    columns.register(updates)  # the same file again: it was reloaded
    with pytest.raises(ValueError, match="'doubt' already"):
        columns.register(replace(updates, name="doubt"))
    with pytest.raises(ValueError, match="'bits_per_byte', which is not counted"):
        metrics.register(Metric("other", "bits_per_byte"))


def test_a_metric_of_another_shape_is_refused_by_name():
    metrics.register(Metric("mean", lambda answers: answers.losses.mean()))
    try:
        with pytest.raises(
            ValueError, match=r"metric 'mean' gives .* for each token or each sequence"
        ):
            Tally().add(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    finally:
        del METRICS["mean"]


def test_every_task_has_a_headline_metric_that_is_known():
    assert {task.metric for task in tasks().values()} <= METRICS.keys()
