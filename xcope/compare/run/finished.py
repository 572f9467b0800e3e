"""Whether a comparison is finished, and its report of these runs, told without importing torch.

A folder keeps what was printed last, with a key of all that decided it and the state of its files.
Where both are the same, the same would be written and printed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xcope import catalogue, files
from xcope.compare.run.server import has_driver
from xcope.config import Config

NAME = ".finished.json"
PACKAGES = ("torch", "x-transformers", "accelerate", "numpy", "matplotlib", "jinja2", "rich")
"""Whose versions results, pictures and pages may depend on."""
UNTOUCHED = frozenset({NAME, ".lock", ".writer.json"})
"""Files that say nothing of what was found."""


@dataclass(frozen=True)
class Printed:
    """What a finished comparison printed.

    Args:
        runs: how many there are.
        text: for stdout.
    """

    runs: int
    text: str


def key(config: Config, asked: Mapping[str, Any]) -> str | None:
    """Of what decides how the report of finished runs looks; None where nobody can tell: with
    plugins.

    Args:
        asked: what the command was given besides, and how wide it prints.
    """
    if config.plugins or catalogue.read() is None:
        return None
    machine = [platform.system(), platform.machine(), os.cpu_count(), has_driver()]
    machine.append(len(os.sched_getaffinity(0)))
    decides = {
        "config": config.to_yaml(),
        "files": [_stamp(path) for path in _named(config.plain())],
        "asked": asked,
        "code": _code(),
        "versions": [version(name) for name in PACKAGES],
        "machine": machine,
    }
    return hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()


def printed(out: Path, key: str | None) -> Printed | None:
    """What the comparison printed, if it would print it again; else None."""
    try:
        kept = json.loads((out / NAME).read_text(encoding="utf-8"))
        if key is None or kept.pop("key") != key or kept.pop("state") != _state(out):
            return None
        return Printed(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep(out: Path, key: str | None, printed: Printed) -> None:
    """Keep what a comparison printed whose runs are all complete."""
    if key is not None:
        files.write_json(out / NAME, {"key": key, "state": _state(out), **asdict(printed)})


def _state(out: Path) -> str:
    """Of every file: its size, and when it was written."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(out):
        folders.sort()
        for name in sorted(set(names) - UNTOUCHED):
            path = Path(folder, name)
            digest.update(f"{path.relative_to(out)} {_stamp(path)}\n".encode())
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _named(value: Any) -> Iterator[Path]:
    """The files and folders that a config names."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _named(one)
    elif isinstance(value, str) and os.path.exists(value):
        yield Path(value)


def _code() -> str:
    """Of the package's own files."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(catalogue.FOLDER):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            digest.update(name.encode() + Path(folder, name).read_bytes())
    return digest.hexdigest()
