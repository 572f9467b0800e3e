"""What runs gave, as a pandas DataFrame: for notebooks."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcope import files
from xcope.compare.run.plan import as_text
from xcope.config.yaml_tree import read_file
from xcope.errors import FlagError
from xcope.modules import plan_of
from xcope.training import RunError, RunFolder

if TYPE_CHECKING:
    import pandas as pd

WHOLE = ("model.position", "train.longer", "train.betas", "import")
"""Keys whose value is one, whatever it is made of."""
NOT_SWEPT = ("out", "import", "model.max_seq_len", "model.dim_head")
"""Keys of a resolved config that say nothing of their own, and differ because others do."""


@dataclass(frozen=True)
class _Run:
    """A run on disk.

    Args:
        name: its folder's, below the folder that was asked for.
        keys: of its config, dotted.
        told: what the comparison that it is of tells: ``reason`` why it failed, and where it has no
            folder, ``scheme`` and ``seed``.
    """

    name: str
    folder: Path | None
    keys: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)


def results(folder: str | Path) -> pd.DataFrame:
    """A row for each run and test split of a run, a comparison, or a folder that holds such.

    Nothing of what the runs import is run.

    Returns:
        ``run``, ``scheme`` (as reports name it), ``seed``; a column for each swept key, and where
        there is no sweep for each key in which the runs differ; ``split``; a column for each
        metric; ``params``, ``steps``, ``seconds``; ``status`` (ok, failed, unfinished), ``reason``.
        A run without results has one row, without a split.

    Raises:
        RunError: the folder holds no run.
        ModuleNotFoundError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("xcope.results needs pandas: pip install pandas") from error
    root = files.expanded(folder)
    found, swept = _found(root)
    if not found:
        raise RunError(
            f"{root} holds no run: name the folder of a run, of a comparison, or of several"
            if root.is_dir()
            else f"there is no folder {root}"
        )
    differing = swept or _differing(found)
    rows = [row for run in found for row in _rows(run, differing)]
    names = dict.fromkeys(name for row in rows for name in row)
    # what every row has stands first, what only a failed one has last
    last = ("params", "steps", "seconds", "status", "reason")
    frame: pd.DataFrame = pandas.DataFrame(
        rows, columns=[*(n for n in names if n not in last), *last]
    )
    return frame


def _found(root: Path) -> tuple[list[_Run], list[str]]:
    """The runs below a folder, and the keys that were swept to make them."""
    if (root / "runs").is_dir() and (root / "config.yaml").is_file():
        return _of_comparison(root, "")
    if RunFolder(root).exists():
        return [_read(root, root.resolve().name)], []
    found, swept = list[_Run](), dict[str, None]()
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if (place / "config.yaml").is_file():
            runs, keys = (
                _of_comparison(place, f"{place.name}/")
                if (place / "runs").is_dir()
                else ([_read(place, place.name)], [])
            )
            found += runs
            swept |= dict.fromkeys(keys)
    # runs that were not swept together may differ in anything
    return found, [*dict.fromkeys([*swept, *_differing(found)])] if swept else []


def _of_comparison(root: Path, within: str) -> tuple[list[_Run], list[str]]:
    config = read_file(root / "config.yaml").plain()
    told = dict[str, Mapping[str, str]]()
    if (root / "results.csv").is_file():
        lines = files.read_text(root / "results.csv").splitlines(keepends=True)
        told = {row["run"]: row for row in csv.DictReader(lines)}
    places = {place.name: place for place in sorted((root / "runs").glob("*/"))}
    names = dict.fromkeys([*told, *places])  # in the order of the sweep, as the report has it
    runs = [
        _read(places[name], within + name, told.get(name, {}))
        if name in places and RunFolder(places[name]).exists()
        else _Run(within + name, None, told=told.get(name, {}))
        for name in names
    ]
    tune = [key for key in config.get("tune") or {} if "." in key]
    return runs, [*(config.get("sweep") or {}), *tune]


def _read(folder: Path, name: str, told: Mapping[str, str] | None = None) -> _Run:
    keys = dict(_flat("", read_file(folder / "config.yaml").plain()))
    return _Run(name, folder, keys, told or {})


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and key not in WHOLE:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else name, inner)
    else:
        yield key, value


def _differing(runs: list[_Run]) -> list[str]:
    """The keys that do not have one value in all runs, in their order."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    known = [run.keys for run in runs if run.keys]
    return [
        key
        for key in keys
        if key not in NOT_SWEPT and len({as_text(one.get(key)) for one in known}) > 1
    ]


def _rows(run: _Run, swept: list[str]) -> Iterator[dict[str, Any]]:
    result = None if run.folder is None else RunFolder(run.folder).read_result()
    row: dict[str, Any] = {"run": run.name}
    if run.keys:
        row |= {"scheme": _scheme(run.keys), "seed": run.keys.get("train.seed")}
    else:
        row |= {"scheme": run.told.get("scheme"), "seed": int(run.told.get("seed", -1))}
    row |= {key: _cell(_value(run.keys, key)) for key in swept if key != "train.seed"}
    if result is None:
        reason = run.told.get("reason", "")
        status = "failed" if reason else "unfinished"
        yield row | {"split": None, "status": status, "reason": reason}
        return
    cost = {"params": result.params, "steps": result.steps, "seconds": result.seconds}
    for split, metrics in result.splits.items():
        yield row | {"split": split, **metrics, **cost, "status": "ok", "reason": ""}


def _value(keys: Mapping[str, Any], swept: str) -> Any:
    """The value of a swept key, which may lie within one that is whole: ``model.position.max_pos``
    of ``model.position``."""
    for whole in WHOLE:
        if swept.startswith(f"{whole}.") and isinstance(keys.get(whole), Mapping):
            return keys[whole].get(swept.removeprefix(f"{whole}."))
    if swept == "task" and "task.name" in keys:
        return keys["task.name"]
    return keys.get(swept)


def _cell(value: Any) -> Any:
    """A number or a text as it is, all else as reports write it."""
    return as_text(value) if isinstance(value, Mapping | list) else value


def _scheme(keys: Mapping[str, Any]) -> str:
    """The label of the scheme; of one that is not registered here, what the config says."""
    flags = {
        key.removeprefix("model."): tuple(value) if isinstance(value, list) else value
        for key, value in keys.items()
        if key.startswith("model.") and value is not None
    }
    position = flags.pop("position", None)
    for size in ("dim", "depth", "heads", "dim_head", "max_seq_len"):
        flags.pop(size, None)
    try:
        return plan_of(position, flags).label()
    except FlagError:
        return as_text(position)
