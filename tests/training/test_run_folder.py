"""A run folder is never overwritten silently, and overwriting removes a run and nothing else."""

import json
from pathlib import Path

import pytest
from training_runs import MakeConfig, assert_same_run

from xcope.config import load_config
from xcope.training import RunError, default_run_dir, safe_name, train
from xcope.training.log import read_metrics


def test_an_existing_run_is_refused_with_the_ways_out(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "run")
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    with pytest.raises(RunError, match=r"--resume .*--overwrite"):
        train(tiny(), tmp_path / "run")
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before


def test_overwrite_starts_again_and_leaves_other_files_alone(tiny: MakeConfig, tmp_path: Path):
    train(tiny("train.seed=1"), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(tiny(), tmp_path / "run", overwrite=True)
    train(tiny(), tmp_path / "fresh")
    assert_same_run(tmp_path / "run", tmp_path / "fresh")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_refused(tiny: MakeConfig, tmp_path: Path, overwrite: bool):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="no run folder"):
        train(tiny(), tmp_path / "home", overwrite=overwrite)
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["notes.txt"]


def test_the_config_beside_a_run_is_the_resolved_one(tiny: MakeConfig, tmp_path: Path):
    config = tiny("train.seed=3")
    train(config, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.yaml") == config


def test_metrics_and_times_are_logged(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 4, 8, 12]
    assert all(line.keys() == {"step", "loss", "lr", "grad_norm", "seconds"} for line in lines)
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["seconds"] > 0
    assert timing["steps_per_second"] > 0


def test_tensorboard_has_the_losses_where_it_is_installed(tiny: MakeConfig, tmp_path: Path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    train(tiny(), tmp_path / "run")
    events = accumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert logged == pytest.approx({line["step"]: line["loss"] for line in lines})


def test_tensorboard_may_be_absent(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "results.json").exists()


def test_the_default_folder_names_config_scheme_and_seed(tiny: MakeConfig):
    config = tiny("model.position={name: cope, max_pos: 32}", "train.seed=2")
    folder = default_run_dir(config, Path("configs/experiments/text.yaml"))
    assert folder == Path("runs/text-cope-max_pos=32-seed2")
    assert default_run_dir(tiny("out=elsewhere/x"), Path("text.yaml")) == Path("elsewhere/x")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cope(max_pos=32)", "cope-max_pos=32"),
        ("absolute+cope(a=1, b=x/y)", "absolute+cope-a=1-b=x-y"),
        ("../..", "run"),
    ],
)
def test_labels_become_safe_file_names(label: str, name: str):
    assert safe_name(label) == name
