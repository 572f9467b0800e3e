"""What is registered, read from a file: names, options and flags, without importing torch.

``catalogue.json`` holds what `xcope.describe` says of the package's own schemes, tasks and flags,
and a key made of the files that say it. Where the key does not fit, where installed packages
announce plugins, or where the schemes are imported already, nothing is read from it: what is
registered then answers for itself.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
FILE = FOLDER / "catalogue.json"
SOURCES = (
    "positions/*.py",
    "tasks/*.py",
    "modules/*.py",
    "training/metrics.py",
    "compare/report/columns.py",
    "registry.py",
    "files.py",
    "describe.py",
)
"""The files that decide what the catalogue says."""
PLUGINS = "xcope.plugins"
"""The entry points of installed plugins, see `xcope.plugins`."""

Described = Mapping[str, Any]
"""``schemes``, ``tasks``, ``flags``: see `xcope.describe.described`."""


def key() -> str:
    """Of the present files, and of the version of x-transformers that gives the other flags."""
    digest = hashlib.sha256(importlib.metadata.version("x-transformers").encode())
    for pattern in SOURCES:
        for file in sorted(FOLDER.glob(pattern)):
            digest.update(f"{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()[:32]


def read() -> Described | None:
    """The catalogue, if it says all that is registered; else None."""
    return None if "xcope.positions" in sys.modules else _read()


@functools.cache
def _read() -> Described | None:
    try:
        found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
        fits = found.pop("key") == key()
    except (OSError, ValueError, KeyError, importlib.metadata.PackageNotFoundError):
        return None
    return found if fits and not importlib.metadata.entry_points(group=PLUGINS) else None


def write(described: Described) -> None:
    """Write the catalogue of the present files."""
    text = json.dumps({"key": key(), **described}, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
