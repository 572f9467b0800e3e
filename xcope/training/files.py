"""Files that are either old or new, never half written: write beside, fsync, rename."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from xcope import reading
from xcope.training.errors import RunError

MOST_BYTES = 2**28
"""Of a JSON file, or of a log of metrics."""


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in one step."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        fsync(beside)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at ``path`` by ``value`` as indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return reading.parse_json(reading.read_text(path, MOST_BYTES))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except reading.UnreadableError as error:
        raise RunError(f"{path} {error}") from None


def safe_name(label: str) -> str:
    """A label as part of a file name: ``cope(max_pos=32)`` → ``cope-max_pos=32``."""
    return re.sub(r"[^A-Za-z0-9_.+=]+", "-", label).strip("-.") or "run"
