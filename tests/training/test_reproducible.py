"""The same config gives the same run; what decides the numbers is in the config."""

from pathlib import Path

import pytest
import torch
from training_runs import MakeConfig, assert_same_run, assert_same_weights, results

from xcope.training import train

DROPOUT = ("model.attn_dropout=0.1", "model.layer_dropout=0.2", "model.depth=2")


def test_same_seed_same_run_whatever_happened_before(tiny: MakeConfig, tmp_path: Path):
    train(tiny(*DROPOUT), tmp_path / "a")
    torch.rand(100)
    train(tiny(*DROPOUT), tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_logging_and_saving_do_not_touch_the_numbers(tiny: MakeConfig, tmp_path: Path):
    train(tiny(*DROPOUT), tmp_path / "a")
    train(tiny(*DROPOUT, "train.log_every=1", "train.checkpoint_every=0"), tmp_path / "b")
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_another_seed_is_another_run(tiny: MakeConfig, tmp_path: Path):
    first = train(tiny(), tmp_path / "a")
    assert train(tiny("train.seed=1"), tmp_path / "b").splits != first.splits


def test_results_hold_splits_parameters_steps_and_curves(tiny: MakeConfig, tmp_path: Path):
    result = train(tiny(), tmp_path / "run")
    written = results(tmp_path / "run")
    curves = written.pop("by_position")
    assert curves == result.by_position
    assert written == {"splits": result.splits, "params": result.params, "steps": 12}
    # three non-blank tokens and three blanks, a separator, and the three again
    places = curves["in_distribution"]
    assert places["edges"] == list(range(11))
    assert [value is not None for value in places["values"]] == [*[False] * 6, *[True] * 3, False]
    mean = sum(places["values"][6:9]) / 3
    assert mean == pytest.approx(written["splits"]["in_distribution"]["error"])
    assert set(written["splits"]) == {"in_distribution", "dense", "sparse"}
    assert set(written["splits"]["dense"]) == {"loss", "error", "sequence_error"}


def test_two_precisions_can_be_trained_in_one_process(tiny: MakeConfig, tmp_path: Path):
    single = train(tiny(), tmp_path / "a")
    half = train(tiny("train.precision=bf16"), tmp_path / "b")
    assert half.splits != single.splits
    for split, metrics in single.splits.items():
        assert half.splits[split]["loss"] == pytest.approx(metrics["loss"], rel=0.1)
