"""A checkpoint is complete or absent, gives back what was saved, and is never a pickle."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import MakeConfig

from xcope.training import RunError, load_run, train
from xcope.training import checkpoint as checkpoints

Groups = dict[str, dict[str, torch.Tensor]]


def groups(value: float) -> Groups:
    tied = torch.full((3, 2), value)
    return {
        "model": {"a": tied, "b": tied, "part": tied[1:], "turned": tied.T},
        "optimizer": {"step": torch.tensor(value), "bytes": torch.arange(4, dtype=torch.uint8)},
    }


def assert_holds(folder: Path, value: float) -> None:
    loaded, state = checkpoints.load(folder, ("model", "optimizer"))
    assert state == {"value": value}
    for group, tensors in groups(value).items():
        assert loaded[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(loaded[group][name], tensor)
            assert loaded[group][name].dtype == tensor.dtype


def test_what_is_saved_comes_back_also_tied_and_strided_tensors(tmp_path: Path):
    checkpoints.save(tmp_path / "checkpoint", groups(1.5), {"value": 1.5})
    assert_holds(tmp_path / "checkpoint", 1.5)


def test_a_group_may_be_empty(tmp_path: Path):
    checkpoints.save(tmp_path / "checkpoint", {"optimizer": {}}, {})
    assert checkpoints.load(tmp_path / "checkpoint", ["optimizer"]) == ({"optimizer": {}}, {})


class PowerCut(BaseException):
    """Ends a save wherever it is."""


def cut_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next ``calls`` of the calls that change the disk through, and no other."""
    left = calls

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise PowerCut
            left -= 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoints, "save_file", counted(checkpoints.save_file))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    for name in ("fsync", "mkdir", "rename", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def test_a_save_that_is_cut_off_anywhere_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outcomes = []
    for calls in range(100):
        folder = tmp_path / f"run{calls}" / "checkpoint"
        folder.parent.mkdir()
        checkpoints.save(folder, groups(1.0), {"value": 1.0})
        with monkeypatch.context() as patch:
            cut_after(calls, patch)
            try:
                checkpoints.save(folder, groups(2.0), {"value": 2.0})
                finished = True
            except PowerCut:
                finished = False
        outcomes.append(checkpoints.load_state(folder)["value"])
        assert_holds(folder, outcomes[-1])
        # the next save is not in the way of what is left over
        checkpoints.save(folder, groups(3.0), {"value": 3.0})
        assert_holds(folder, 3.0)
        assert [p.name for p in folder.parent.iterdir()] == ["checkpoint"]
        if finished:
            break
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == 1.0
    assert outcomes[-1] == 2.0
    assert len(outcomes) > 8


def test_a_changed_state_is_refused(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    checkpoints.save(folder, groups(1.0), {"value": 1.0})
    content = json.loads((folder / "state.json").read_text())
    content["state"]["value"] = 2.0
    (folder / "state.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="damaged or was changed"):
        checkpoints.load_state(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"state": 1, "sha256": 2}'])
def test_a_state_that_is_no_state_is_refused(tmp_path: Path, content: str):
    folder = tmp_path / "checkpoint"
    checkpoints.save(folder, groups(1.0), {"value": 1.0})
    (folder / "state.json").write_text(content)
    with pytest.raises(RunError, match=r"state\.json is damaged"):
        checkpoints.load_state(folder)


def test_a_file_of_another_checkpoint_is_refused(tmp_path: Path):
    for value in (1.0, 2.0):
        (tmp_path / f"{value}").mkdir()
        checkpoints.save(tmp_path / f"{value}" / "checkpoint", groups(value), {"value": value})
    mixed = tmp_path / "1.0" / "checkpoint"
    shutil.copy(tmp_path / "2.0" / "checkpoint" / "model.safetensors", mixed)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged or was changed"):
        checkpoints.load(mixed, ["model"])


def test_no_checkpoint_is_a_clear_error(tmp_path: Path):
    assert not checkpoints.exists(tmp_path / "checkpoint")
    with pytest.raises(RunError, match="no checkpoint in"):
        checkpoints.load(tmp_path / "checkpoint", ["model"])


def test_a_run_folder_holds_no_pickle(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "run")
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"model.safetensors", "optimizer.safetensors", "state.json"} <= {f.name for f in files}
    for file in files:
        # zip archives (torch.save) and pickles begin so
        assert not file.read_bytes().startswith((b"PK", b"\x80")), file


def test_weights_have_the_names_of_x_transformers_also_when_tied(tiny: MakeConfig, tmp_path: Path):
    config = tiny("model.tie_embedding=true")
    train(config, tmp_path / "run")
    _, model = load_run(tmp_path / "run")
    names = set(model.state_dict())
    assert names == set(checkpoints.load(tmp_path / "run" / "checkpoint", ["model"])[0]["model"])
    assert "token_emb.emb.weight" in names


def test_a_model_that_the_weights_do_not_fit_is_a_clear_error(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("dim: 16", "dim: 32"))
    with pytest.raises(RunError, match="do not fit the model"):
        load_run(tmp_path / "run")
