"""Checkpoints on disk: safetensors and JSON, complete or absent, checked when read.

A checkpoint is a folder::

    checkpoint/
      <group>.safetensors   one file per group of tensors: "model", "optimizer"
      state.json            everything else, and the SHA-256 of every part

It is written beside its final place and renamed into it. The previous one is renamed away first
and removed last, so that at any moment one of the two is complete; `load` finds it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xcope import files
from xcope.training.errors import RunError

Tensors: TypeAlias = Mapping[str, Tensor]

STATE = "state.json"


def save(folder: Path, groups: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint in ``folder``.

    Args:
        folder: where the checkpoint is to be; its parent exists.
        groups: group → name → tensor. Tensors may share memory (tied weights): each name is
            written in full, so that the file loads strictly anywhere.
        state: what JSON can hold.

    Raises:
        RunError: it cannot be written, for instance to a full disk; the previous one is kept.
    """
    new, old = _beside(folder, "new"), _beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        _write(new, groups, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)  # a full disk needs the space
        kept = "the one before it is kept" if exists(folder) else "there is none before it"
        raise RunError(f"the checkpoint {folder} cannot be written, {kept}: {error}") from error
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    files.fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def exists(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint, or did when a save was cut off."""
    return _place(folder) is not None


def load(folder: Path, groups: Iterable[str]) -> tuple[dict[str, dict[str, Tensor]], Any]:
    """The named groups of tensors (on the CPU) and the state.

    Raises:
        RunError: there is no checkpoint, or its content is not what was written.
    """
    place = _place(folder)
    if place is None:
        raise RunError(f"there is no checkpoint in {folder.parent}")
    state, digests = _read_state(place)
    return {group: _read_group(place, group, digests) for group in groups}, state


def shapes(folder: Path, group: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a group; the tensors themselves are not read.

    Raises:
        RunError: there is no checkpoint, or the file of the group cannot be read.
    """
    place = _place(folder)
    if place is None:
        raise RunError(f"there is no checkpoint in {folder.parent}")
    path = place / f"{group}.safetensors"
    if not path.is_file():
        raise RunError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def load_state(folder: Path) -> Any:
    """The state without the tensors; errors as `load`."""
    return load(folder, ())[1]


def remove(folder: Path) -> None:
    """Remove the checkpoint, and what a save that was cut off left beside it."""
    for place in (folder, _beside(folder, "new"), _beside(folder, "old")):
        shutil.rmtree(place, ignore_errors=True)


def read_json(path: Path) -> Any:
    """The JSON value in a file of a run.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return files.parse_json(files.read_text(path))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except files.UnreadableError as error:
        raise RunError(f"{path} {error}") from None


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def _place(folder: Path) -> Path | None:
    """``folder``, or the previous checkpoint where a save stopped between its two renames."""
    return next((p for p in (folder, _beside(folder, "old")) if p.is_dir()), None)


def _write(folder: Path, groups: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    digests = {STATE: _digest_state(state)}
    for group, tensors in groups.items():
        path = folder / f"{group}.safetensors"
        save_file({name: _own_copy(tensor) for name, tensor in tensors.items()}, path)
        files.fsync(path)
        digests[path.name] = _digest_file(path)
    files.write_json(folder / STATE, {"state": state, "sha256": digests})


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _read_state(folder: Path) -> tuple[Any, Mapping[str, str]]:
    path = folder / STATE
    content = read_json(path)
    try:
        state, digests = content["state"], content["sha256"]
        intact = digests[STATE] == _digest_state(state)
    except (KeyError, TypeError):
        intact = False
    if not intact:
        raise _damaged(path)
    return state, digests


def _read_group(folder: Path, group: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    path = folder / f"{group}.safetensors"
    if not path.is_file():
        raise RunError(f"{path} is missing")
    if _digest_file(path) != digests.get(path.name):
        raise _damaged(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def _damaged(path: Path) -> RunError:
    return RunError(f"{path} is damaged or was changed: its SHA-256 is not the one in {STATE}")


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_state(state: Any) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
