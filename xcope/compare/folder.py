"""The folder of a comparison: whose it is, when it may be used again, and clearing it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xcope.compare.errors import CompareError
from xcope.compare.plan import Run


@contextmanager
def opened(out: Path, runs: Sequence[Run], *, overwrite: bool) -> Iterator[None]:
    """Context in which the folder is there and is this comparison's alone.

    What it holds already must be runs of this sweep, in any state; the sweep may have grown since.

    Args:
        overwrite: clear a folder that holds another comparison; never one that holds other files.

    Raises:
        CompareError: something else is there, or a comparison is running in it.
    """
    if out.exists() and not out.is_dir():
        raise CompareError(f"{out} is a file: choose a folder with --out DIR")
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        ours = (out / "config.yaml").is_file() and (out / "runs").is_dir()
        if any(out.iterdir()) and not ours:
            raise CompareError(f"{out} holds something else than a comparison: choose --out DIR")
        if overwrite:
            _clear(out)
        if other := _other(out, runs):
            raise CompareError(
                f"{out} holds another comparison ({other}): choose another folder with --out DIR, "
                "or replace what is there with --overwrite"
            )
        yield


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CompareError(f"another comparison is running in {out}: choose --out DIR") from error
    finally:
        os.close(folder)


def _clear(out: Path) -> None:
    """Remove what a comparison writes, and nothing else that a person may have put there."""
    for folder in ("runs", "logs", "plots"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in ("config.yaml", "results.csv", "timings.csv", "report.md"):
        (out / file).unlink(missing_ok=True)


def _other(out: Path, runs: Sequence[Run]) -> str | None:
    """The first run in the folder that is none of ``runs``, in words."""
    known = {run.name: run for run in runs}
    for folder in sorted((out / "runs").glob("*/")):
        run = known.get(folder.name)
        if run is None:
            return f"{folder.name} is not in this sweep"
        if (folder / "config.yaml").is_file() and not run.same_config:
            return f"{folder.name} has another config"
    return None
