"""Tuning: what is picked, that it is what the runs get, and what happens when runs fail."""

import csv
import math
from io import StringIO
from pathlib import Path

import pytest
from compare_runs import TINY
from rich.console import Console

from xcope.compare import CompareError, Outcome, compare
from xcope.compare.report.write import write_tuning
from xcope.compare.run.plan import plan
from xcope.compare.run.tuning import picks, plan_tuning, with_picks
from xcope.config import Config, load_config

TUNE = {"train.lr": [0.01, 0.02, 0.04], "seeds": [7, 8], "steps": 3}


def load(folder: Path, **changes) -> Config:
    tuned = {**TINY, "sweep": {"model.position": ["none", "rotary"], "train.seed": [0]}}
    file = folder / "tuned.yaml"
    file.write_text(repr({**tuned, "tune": TUNE, **changes}))  # flow-style YAML
    return load_config(file, sweep=True)


def made_up(values):
    """Gives outcomes of tuning runs: (scheme, learning rate) → error of each tuning seed."""

    def ended(run):
        value = values[run.scheme, run.config.train.lr][TUNE["seeds"].index(run.seed)]
        if value is None:
            return Outcome(run, reason="the loss is nan")
        error, loss = value if isinstance(value, tuple) else (value, value)
        return Outcome(run, metrics={"in_distribution": {"error": error, "loss": loss}})

    return ended


def picked(tmp_path, none, rotary=((0.1, 0.1),) * 3):
    """The picks where ``none`` (``rotary``) has these errors at each learning rate."""
    values = {("none", lr): errors for lr, errors in zip(TUNE["train.lr"], none, strict=True)}
    values |= {("rotary", lr): errors for lr, errors in zip(TUNE["train.lr"], rotary, strict=True)}
    return picks(plan_tuning(load(tmp_path), tmp_path), made_up(values))


def test_tuning_runs_are_named_by_scheme_seed_and_value(tmp_path):
    trials = plan_tuning(load(tmp_path), tmp_path)
    assert [trial.run.name for trial in trials] == [
        f"{scheme}-seed{seed}-lr={lr}"
        for scheme in ("none", "rotary")
        for lr in (0.01, 0.02, 0.04)
        for seed in (7, 8)
    ]
    assert {trial.run.folder.parent for trial in trials} == {tmp_path / "tuning"}
    assert {trial.run.splits for trial in trials} == {("in_distribution",)}


@pytest.mark.parametrize(
    ("errors", "lr"),
    [
        ([(0.3, 0.5), (0.2, 0.4), (0.1, 0.7)], 0.02),  # the mean counts
        ([(0.3, 0.5), (0.4, 0.4), (0.4, 0.4)], 0.01),  # the first of equal ones
        ([((0.0, 0.5),) * 2, ((0.0, 0.2),) * 2, ((0.0, 0.3),) * 2], 0.02),  # equal: the loss
        ([(0.3, 0.5), (0.1, None), (0.6, 0.6)], 0.01),  # a seed that failed
        ([(0.3, 0.5), (0.1, math.nan), (0.6, 0.6)], 0.01),
    ],
)
def test_the_lowest_mean_is_picked(tmp_path, errors, lr):
    pick = picked(tmp_path, errors)[0]
    assert (pick.task, pick.variant) == ("selective_copy", "none")
    assert pick.picked.values == {"lr": lr}


def test_each_scheme_has_its_own_pick_and_its_runs_get_it(tmp_path):
    made = picked(tmp_path, [(0.3, 0.5), (0.2, 0.4), (0.1, 0.7)], [(0.1, 0.1), (0.2, 0.2), (1, 1)])
    runs, hopeless = with_picks(plan(load(tmp_path), tmp_path), made)
    assert [(run.name, run.config.train.lr) for run in runs] == [
        ("none-seed0", 0.02),
        ("rotary-seed0", 0.01),
    ]
    assert {run.config.train.steps for run in runs} == {6}
    assert hopeless == {}
    assert [pick.at_edge for pick in made] == [(), ("train.lr",)]


def test_where_every_value_fails_the_runs_fail_and_say_why(tmp_path):
    made = picked(tmp_path, [(None, 0.1)] * 3)
    _, hopeless = with_picks(plan(load(tmp_path), tmp_path), made)
    assert hopeless == {"none-seed0": "no value of tune works: the loss is nan"}
    assert (made[0].picked, made[0].at_edge) == (None, ())


def test_all_tuning_results_are_written(tmp_path):
    write_tuning(tmp_path / "t.csv", picked(tmp_path, [(0.3, 0.5), (0.2, 0.4), (None, 0.7)]))
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [(row["train.lr"], row["seed"], row["value"], row["picked"]) for row in rows[:6]] == [
        ("0.01", "7", "0.3", "no"), ("0.01", "8", "0.5", "no"), ("0.02", "7", "0.2", "yes"),
        ("0.02", "8", "0.4", "yes"), ("0.04", "7", "", "no"), ("0.04", "8", "0.7", "no"),
    ]  # fmt: skip
    assert (rows[4]["status"], rows[4]["reason"]) == ("failed", "the loss is nan")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuned comparison in which one of three learning rates diverges, and its first output."""
    folder = tmp_path_factory.mktemp("tuned")
    tune = {**TUNE, "train.lr": [0.01, 0.02, 1e30], "seeds": [7]}
    config, text = load(folder, tune=tune), StringIO()
    comparison = compare(config, folder / "out", jobs=2, console=Console(file=text))
    return config, comparison, text.getvalue()


def test_the_sweep_runs_with_what_was_picked(tuned):
    config, comparison, printed = tuned
    assert not comparison.failed
    assert [one.run.name for one in comparison.failed_tuning] == [
        "none-seed7-lr=1e+30",
        "rotary-seed7-lr=1e+30",
    ]
    assert "6 tuning runs to train" in printed
    best = {pick.variant: pick.picked.values["lr"] for pick in comparison.picks}
    for one in comparison.outcomes:
        kept = load_config(one.run.folder / "config.yaml")
        assert kept.train.lr == best[one.run.scheme] < 1
        assert kept == config.model_copy(
            update={"sweep": {}, "tune": None, "model": kept.model, "train": kept.train}
        )


def test_reports_show_the_tuning_and_its_failures(tuned):
    _, comparison, _ = tuned
    text = (comparison.out / "report.md").read_text()
    assert "## What tuning picked" in text
    assert "| selective_copy | none | 1e+30 | failed |" in text
    lr = {one.variant: one.picked.tried["train.lr"] for one in comparison.picks}
    assert all(f"{scheme} at lr {lr[scheme]} (" in text for scheme in ("none", "rotary"))
    assert text.count("`none-seed7-lr=1e+30`: ") == 1
    assert "on training seeds 7 and data seed 2, none of which is of the test" in text
    assert "in runs of 3 steps" in text
    assert (comparison.out / "tuning.csv").read_text().count("\n") == 7


def test_the_page_shows_what_was_picked_and_what_failed(tuned, open_page):
    _, comparison, _ = tuned
    opened = open_page(comparison.out / "report.html")
    assert opened.locator("header .alarm").inner_text() == "2 tuning runs failed"
    rows = opened.locator("#tuning tbody tr")
    assert rows.count() == 2
    for row, pick in zip(rows.all(), comparison.picks, strict=True):
        chosen = row.locator(".picked").inner_text()
        assert chosen.startswith(f"train.lr {pick.picked.tried['train.lr']}: ")
        assert chosen.endswith("picked")
        assert "train.lr 1e+30: failed" in row.inner_text()


def test_a_second_call_trains_nothing_but_what_failed(tuned):
    config, comparison, _ = tuned
    times = {p: p.stat().st_mtime_ns for p in comparison.out.glob("*/*/results.json")}
    text = StringIO()
    compare(config, comparison.out, jobs=2, console=Console(file=text, width=200))
    assert {p: p.stat().st_mtime_ns for p in comparison.out.glob("*/*/results.json")} == times
    assert "4 of 6 tuning runs are complete already" in text.getvalue()
    assert "none-seed7-lr=1e+30 failed before and is tried again" in text.getvalue()
    assert "2 of 2 runs are complete already" in text.getvalue()


def test_runs_of_another_pick_are_not_taken_for_those_of_this_one(tuned, tmp_path):
    config, comparison, _ = tuned
    run = comparison.outcomes[0].run
    other = run.config.model_copy(update={"train": run.config.train.model_copy(update={"lr": 9.0})})
    kept = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(other.to_yaml())
    try:
        with pytest.raises(CompareError, match=r"none-seed0 was made with another config.*--out"):
            compare(config, comparison.out, jobs=2, console=Console(file=StringIO()))
    finally:
        (run.folder / "config.yaml").write_text(kept)
