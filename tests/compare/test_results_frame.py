"""Runs as a DataFrame."""

import importlib
import io
import json
import shutil
import sys

import pytest
import yaml
from rich.console import Console

import xcope
from xcope.compare import compare
from xcope.config import ConfigError, load_config
from xcope.training import RunError, train

TINY = {
    "model": {"dim": 16, "depth": 1, "heads": 2},
    "task": {"name": "selective_copy", "tokens": 3, "blanks": 3, "values": 4},
    "train": {"steps": 2, "batch_size": 4, "device": "cpu"},
    "evaluate": {"batches": 1, "batch_size": 4},
    "sweep": {
        "model.position": ["rotary", {"name": "cope", "max_pos": 4}],
        "train.lr": [1.0e-3, 2.0e-3],
        "train.seed": [0, 1],
    },
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A comparison of eight runs, one of which has failed since and one was never made."""
    folder = tmp_path_factory.mktemp("frame")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    config = load_config(folder / "tiny.yaml", sweep=True, data=False)
    patch = pytest.MonkeyPatch()
    patch.setattr("xcope.compare.run.pool.run_all", in_this_process)
    compare(config, folder / "out", jobs=1, console=Console(file=io.StringIO()))
    patch.undo()
    return folder / "out"


def in_this_process(runs, **_):
    """Train the runs but the last two: of the first of them nothing is there."""
    for run in runs[:-1]:
        train(run.config, run.folder)
    (runs[-2].folder / "results.json").unlink()
    return {runs[-2].name: "it diverged", runs[-1].name: "its process died"}


def test_a_comparison_has_a_row_for_each_run_and_split_and_a_column_for_each_swept_key(swept):
    frame = xcope.results(swept)
    assert list(frame.columns) == [
        "run", "scheme", "seed", "model.position", "train.lr", "split", "loss", "error",
        "sequence_error", "params", "steps", "seconds", "status", "reason",
    ]  # fmt: skip
    done = frame[frame.status == "ok"]
    assert len(done) == 6 * 3
    assert set(done.scheme) == {"rotary", "cope(max_pos=4)"}
    assert set(frame["train.lr"].dropna()) == {1.0e-3, 2.0e-3}
    assert frame["train.lr"].dtype == float
    assert done.seed.dtype == int
    for row in done.itertuples():
        stored = json.loads((swept / "runs" / row.run / "results.json").read_text())
        assert row.error == stored["splits"][row.split]["error"]
        assert row.params == stored["params"]
    mean = done.groupby(["scheme", "train.lr", "split"])["error"].mean()
    assert ("rotary", 1.0e-3, "sparse") in mean.index


def test_failures_are_rows_with_their_reason(swept):
    frame = xcope.results(swept)
    failed = frame[frame.status == "failed"]
    assert list(failed.reason) == ["it diverged", "its process died"]
    assert list(failed.seed) == [0, 1]
    assert set(failed.scheme) == {"cope(max_pos=4)"}
    assert failed.error.isna().all()
    assert failed.split.isna().all()


def test_a_single_run_and_a_folder_of_runs(swept, tmp_path):
    one, two = sorted((swept / "runs").iterdir())[:2]
    frame = xcope.results(one)
    assert list(frame.run.unique()) == [one.name]
    assert list(frame.split) == ["in_distribution", "dense", "sparse"]
    shutil.copytree(one, tmp_path / "a")
    shutil.copytree(two, tmp_path / "b")
    (tmp_path / "b" / "results.json").unlink(missing_ok=True)
    (tmp_path / "notes.txt").write_text("")
    frame = xcope.results(tmp_path)
    assert list(frame.run.unique()) == ["a", "b"]
    assert list(frame.status) == ["ok"] * 3 + ["unfinished"]
    assert set(frame.columns) & {"train.lr", "train.seed", "model.dim"} <= {"train.lr"}
    shutil.copytree(swept, tmp_path / "sweep")
    frame = xcope.results(str(tmp_path))
    assert len(frame[frame.status == "ok"]) == 3 + 6 * 3
    assert f"sweep/{one.name}" in set(frame.run)
    assert "train.lr" in frame


def test_nothing_of_what_a_run_imports_is_run(swept, tmp_path):
    shutil.copytree(next((swept / "runs").iterdir()), tmp_path / "run")
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["import"] = [str(tmp_path / "evil.py")]
    config["model"]["position"] = {"name": "unheard_of", "size": 3}
    file.write_text(yaml.safe_dump(config))
    assert set(xcope.results(tmp_path / "run").scheme) == {"unheard_of(size=3)"}


def test_a_folder_without_runs_is_told(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        xcope.results(tmp_path)
    with pytest.raises(RunError, match="there is no folder"):
        xcope.results(tmp_path / "nowhere")


def test_without_pandas_it_says_what_to_install(swept, monkeypatch):
    importlib.import_module("xcope.compare.frame")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        xcope.results(swept)


def test_a_sweep_over_what_runs_begin_with_is_checked_before_it_begins(swept, tmp_path):
    begun = next((swept / "runs").glob("rotary*"))
    alone = {key: value for key, value in TINY.items() if key != "sweep"}
    (tmp_path / "next.yaml").write_text(yaml.safe_dump(alone))

    def config(*sources):
        given = f"sweep={{train.init_from: [{', '.join(map(str, sources))}]}}"
        return load_config(
            tmp_path / "next.yaml", [given, "model.position=cope"], sweep=True, data=False
        )

    with pytest.raises(ConfigError, match=r"train.init_from: there is no folder .*nowhere"):
        compare(config("null", "nowhere"), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is cleared for the new run"):
        compare(config("null", begun), swept, jobs=1, overwrite=True)
    assert begun.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xcope.compare.run.pool.run_all", train_all)
        compare(config("null", begun), tmp_path / "out", console=Console(file=io.StringIO()))
    frame = xcope.results(tmp_path / "out")
    assert set(frame["train.init_from"].dropna()) == {str(begun)}
    taken = list((tmp_path / "out" / "runs").glob("*/init_from.json"))
    assert [json.loads(file.read_text())["run"] for file in taken] == [str(begun)]


def train_all(runs, **_):
    for run in runs:
        train(run.config, run.folder)
    return {}
