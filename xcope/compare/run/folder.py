"""The folder of a comparison: whose it is, when it may be used again, and clearing it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xcope.compare.run import finished
from xcope.compare.run.plan import CompareError, Run
from xcope.training import RunFolder
from xcope.training.lock import NAMES, only_writer

FOLDERS = ("runs", "tuning", "logs", "plots", "plugins")
FILES = (
    "config.yaml",
    "results.csv",
    "timings.csv",
    "summary.csv",
    "tuning.csv",
    "report.md",
    "report.html",
    finished.NAME,
)
"""What a comparison writes."""


@contextmanager
def opened(
    out: Path, runs: Sequence[Run], tuning: Sequence[Run] = (), *, overwrite: bool
) -> Iterator[None]:
    """Context in which the folder is there and only this comparison writes to it.

    What it holds already must be runs of this sweep, in any state; the sweep may have grown since.

    Args:
        tuning: runs that come first; with such the configs of ``runs`` are not known yet, and
            `check_picked` looks at them later.
        overwrite: clear a folder that holds another comparison; never one that holds other files.

    Raises:
        CompareError: something else is there, or a comparison is running in it.
    """
    if out.exists() and not out.is_dir():
        raise CompareError(f"{out} is a file: choose a folder with --out DIR")
    out.mkdir(parents=True, exist_ok=True)
    _check_ours(out)
    with only_writer(out, CompareError):
        _check_ours(out)
        if overwrite:
            _clear(out)
        if other := _other(out / "tuning", tuning) or _other(out / "runs", runs, not tuning):
            raise CompareError(
                f"{out} holds another comparison ({other}): choose another folder with --out DIR, "
                "or replace what is there with --overwrite"
            )
        (out / finished.NAME).unlink(missing_ok=True)
        yield


def _check_ours(out: Path) -> None:
    ours = (out / "config.yaml").is_file() and (out / "runs").is_dir()
    if not ours and {file.name for file in out.iterdir()} - NAMES:
        raise CompareError(f"{out} holds something else than a comparison: choose --out DIR")


def _clear(out: Path) -> None:
    """Remove what a comparison writes, and nothing else that a person may have put there."""
    for folder in FOLDERS:
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in FILES:
        (out / file).unlink(missing_ok=True)


def _other(folder: Path, runs: Sequence[Run], configs: bool = True) -> str | None:
    """Name the first run in a folder that is none of ``runs``, and say why."""
    known = {run.name: run for run in runs}
    for place in sorted(folder.glob("*/")):
        run = known.get(place.name)
        if run is None:
            return f"{place.name} is not in this sweep"
        if configs and (place / "config.yaml").is_file() and not run.same_config:
            return f"{place.name} has another config"
    return None


def check_picked(runs: Sequence[Run]) -> None:
    """Refuse to go on with runs that were made with other values than those picked now.

    Raises:
        CompareError: names the first of them.
    """
    for run in runs:
        if RunFolder(run.folder).exists() and not run.same_config:
            raise CompareError(
                f"{run.folder} was made with another config than the sweep has with the values "
                "that tuning picks now: remove that folder, or choose another one for the "
                "comparison with --out DIR"
            )
