"""Trackers are told what the log has, offline; what fails of them is a line and ends no run."""

import contextlib
import json
import sqlite3
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import tracking
from training_runs import At, MakeConfig, assert_same_run, press_ctrl_c

from xcope.config import ConfigError, load_config
from xcope.training import RunInterruptedError, read_metrics, train
from xcope.training.trackers import wanted

NAMES = ("tensorboard", "wandb", "trackio")
CLASSES = {
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandBTracker",
    "trackio": "TrackioTracker",
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """wandb without a network, and trackio's files in a folder of the test's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackio = pytest.importorskip("trackio.utils")
    folder = tmp_path / "trackio"
    folder.mkdir()
    for module in [one for name, one in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    assert folder == trackio.TRACKIO_DIR
    return folder


def wandb_records(run: Path) -> list:
    """The records that wandb would send, of all its processes in order.

    Its files are logs as LevelDB has them: a header of 7 bytes, then blocks of 32 KiB.
    """
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    records = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                records.append(proto.Record.FromString(whole))
                whole = b""
    return records


def wandb_history(run: Path) -> list[dict]:
    rows = [one.history for one in wandb_records(run) if one.WhichOneof("record_type") == "history"]
    return [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]


def trackio_rows(folder: Path, project: str) -> list[tuple[str, int, dict]]:
    with contextlib.closing(sqlite3.connect(folder / f"{project}.db")) as base:
        found = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    return [(name, step, json.loads(metrics)) for name, step, metrics in found]


def tensorboard_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_every_tracker_is_told_what_the_log_has_also_of_a_run_that_was_stopped(
    tiny: MakeConfig, tmp_path: Path, offline: Path
):
    config = tiny("train.track=[tensorboard, wandb, trackio]", "train.track_project=mine",
                  "train.log_every=1")  # fmt: skip
    run, told = tmp_path / "run", At(7, press_ctrl_c)
    with pytest.raises(RunInterruptedError):
        train(config, run, reporter=told, group="these")
    # as after a crash: the log is further than the checkpoint
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, "loss": 1.0}) + "\n")
    result = train(config, run, resume=True, reporter=told, group="these")
    assert told.warnings == []
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    known = json.loads((run / "tracked.json").read_text())["id"]
    losses = {line["step"]: line["loss"] for line in lines}
    final = {f"test/{s}/{m}": v for s, ms in result.splits.items() for m, v in ms.items()}

    scalars = tensorboard_scalars(run)
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 13))
    assert dict(scalars["train/loss"]) == pytest.approx(losses)
    assert {tag: values[-1] for tag, values in scalars.items() if tag.startswith("test/")} == {
        tag: (12, pytest.approx(value)) for tag, value in final.items()
    }

    (started, again) = [one.run for one in wandb_records(run) if one.HasField("run")]
    assert (started.run_id, again.run_id) == (known, known)
    assert (started.project, started.display_name, started.run_group) == ("mine", "run", "these")
    sent = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert sent["scheme"] == "rotary"
    assert sent["train.betas"] == [0.9, 0.98]
    history = wandb_history(run)
    losses_sent = {row["_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses_sent == {step: loss for step, loss in losses.items() if step != 8}
    assert {key: value for key, value in history[-1].items() if key.startswith("test/")} == final

    rows = trackio_rows(offline, "mine")
    assert {name for name, _, _ in rows} == {f"run-{known}"}
    steps = [step for _, step, metrics in rows if "train/loss" in metrics]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    assert {k: v for _, _, row in rows for k, v in row.items() if k.startswith("test/")} == final


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_a_line_and_the_run_is_the_same(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str
):
    calls = []

    def fail(*args, **kwargs):
        calls.append(method)
        raise OSError("[Errno 28] No space\nleft on device")

    kind = getattr(tracking, CLASSES[name])
    for other in ("start", "log", "finish"):
        monkeypatch.setattr(kind, other, fail if other == method else lambda *a, **k: None)
    monkeypatch.setattr(kind, "tracker", SimpleNamespace(add_hparams=lambda *a, **k: None))
    told = At(0, press_ctrl_c)
    train(tiny(f"train.track={name}"), tmp_path / "run", reporter=told)
    assert len(told.warnings) == len(calls) == 1
    assert told.warnings[0].startswith(
        f"{name} does not follow this run, which goes on without it: "
    )
    assert "No space left on device" in told.warnings[0]
    assert ("WANDB_MODE=offline" in told.warnings[0]) == (name == "wandb")
    train(tiny("train.track=[]"), tmp_path / "plain")
    assert_same_run(tmp_path / "run", tmp_path / "plain")


def test_without_a_reporter_the_line_is_a_warning_of_pythons(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # installed, and broken
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.warns(UserWarning, match="wandb does not follow this run"):
        train(tiny("train.track=wandb"), tmp_path / "run")


@pytest.mark.parametrize(
    ("track", "loads"), [("[]", ()), ("null", ("tensorboard",)), ("tensorboard", ("tensorboard",))]
)
def test_nothing_is_imported_that_was_not_asked_for(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: str, loads: tuple
):
    for name in {"wandb", "trackio", "tensorboard"} - {*loads}:
        for loaded in [one for one in sys.modules if one.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)  # to import it is an error
    if not loads:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = At(0, press_ctrl_c)
    train(tiny(f"train.track={track}"), tmp_path / "run", reporter=told)
    assert told.warnings == []
    assert (tmp_path / "run" / "tensorboard").exists() == bool(loads)
    assert not (tmp_path / "run" / "tracked.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_missing_is_told_with_the_line_before_anything_is_written(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    tiny()
    (tmp_path / "more.yaml").write_text(f"extends: tiny.yaml\ntrain:\n  track: [{name}]\n")
    config = load_config(tmp_path / "more.yaml")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"more.yaml:3: .*{name} is not installed: pip install "
                                          r'"xcope\[track\]"'):  # fmt: skip
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "there is no tracker 'tensorbord': .* did you mean 'tensorboard'"),
        ("[wandb, trakio]", "there is no tracker 'trakio': .* did you mean 'trackio'"),
        ("3", "expected a list of tensorboard, wandb and trackio, or one of them, got 3"),
        ("[1]", "expected a list of tensorboard"),
    ],
)
def test_a_name_that_is_no_trackers_is_refused(tiny: MakeConfig, given: str, said: str):
    with pytest.raises(ConfigError, match=rf"train\.track: {said}"):
        tiny(f"train.track={given}")


def test_one_name_may_stand_alone_and_twice_is_once(tiny: MakeConfig):
    assert tiny("train.track=wandb").train.track == ["wandb"]
    assert wanted(tiny("train.track=[trackio, wandb, trackio]").train) == ["trackio", "wandb"]
    assert wanted(tiny("train.track=[]").train) == []


def test_a_run_of_an_earlier_version_is_the_same_run_and_may_be_followed_from_now_on(
    tiny: MakeConfig, tmp_path: Path
):
    assert "track" not in tiny().to_yaml()
    config = tiny("train.track=[]")
    assert load_config_text(config.to_yaml(), tmp_path) == config
    with pytest.raises(RunInterruptedError):
        train(tiny(), tmp_path / "run", reporter=At(5, press_ctrl_c))
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "results.json").exists()


def load_config_text(text: str, folder: Path):
    (folder / "again.yaml").write_text(text)
    return load_config(folder / "again.yaml")


def test_overwriting_a_run_removes_what_trackers_left(tiny: MakeConfig, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny(), run)
    (run / "wandb").mkdir()
    (run / "tracked.json").write_text('{"id": "1"}')
    train(tiny("train.track=[]"), run, overwrite=True)
    assert not [file for file in ("wandb", "tensorboard", "tracked.json") if (run / file).exists()]
