"""Tasks on real text as bytes, and where the text comes from.

The corpus is Python's own standard library, found on the machine, so nothing is downloaded; it
differs a little between Python versions and so do the numbers. A folder or a file of one's own can
be named instead. Files are split into training and held-out text by a hash of their path, so a
file keeps its side whatever else is added. The first third of the held-out text is for validation:
no test sees it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from xcope.errors import FlagError, listing
from xcope.files import IsPath, UnknownPathError, located
from xcope.tasks.base import Task

SEPARATOR = b"\0"
"""Ends each file; text has no such byte."""
TRAIN, VALIDATION, HELD_OUT = "train", "validation", "held_out"
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
"""Folders of the standard library that are skipped: installed packages, and tests, which not
every machine has."""


@dataclass(frozen=True, kw_only=True)
class CorpusTask(Task):
    """A task whose tokens are the bytes of real text; every test is on held-out text.

    The corpus is read once per process, when the first such task is made.

    Args:
        corpus: a folder or a single file; in a YAML file relative to that file's folder, else to
            the working folder, with ``~`` and ``$NAME`` replaced. None: the standard library
            without tests and installed packages. Where there is a single file it is cut in two, its
            end held out.
        glob: the files of the folder, as `pathlib.Path.glob` understands it; ``**/`` includes
            subfolders. A single file ignores it.
        held_out: share of the files (of a single file's bytes) that is held out, between 0 and 1.
    """

    corpus: Annotated[str, IsPath()] | None = None
    glob: str = "**/*.py"
    held_out: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.held_out < 1, "held_out", "a share between 0 and 1")

    @property
    def num_tokens(self) -> int:
        return 256

    def source(self, split: str) -> bytes:
        """All text that the split is drawn from, each file ended by a zero byte."""
        sides = {side: side for side in (TRAIN, VALIDATION)}
        sides |= dict.fromkeys(self.splits, HELD_OUT)
        return read(self.corpus, self.glob, self.held_out)[self.for_split(split, sides)]

    @property
    def validation(self) -> str:
        return VALIDATION

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes."""
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, tokens: list[int]) -> str:
        """Text of UTF-8 bytes; what is no valid UTF-8 becomes U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")


@functools.lru_cache(maxsize=8)
def read(corpus: str | None, glob: str, held_out: float) -> Mapping[str, bytes]:
    """The corpus as `TRAIN`, `VALIDATION` and `HELD_OUT` → text.

    Raises:
        FlagError: a corpus that cannot be read (flag ``corpus``), a pattern without a file
            (``glob``), a side without a file (``held_out``).
    """
    try:
        root = located(sysconfig.get_paths()["stdlib"] if corpus is None else corpus)
        if root.is_file():
            return _cut(root.read_bytes(), held_out)
        if not root.is_dir():
            raise FileNotFoundError(f"{str(root)!r} does not exist")
        files = _find(root, glob, LEFT_OUT if corpus is None else frozenset())
        if len(files) == 1:
            return _cut((root / files[0]).read_bytes(), held_out)
        train, held = (
            b"".join((root / file).read_bytes() + SEPARATOR for file in chosen)
            for chosen in _split(files, held_out)
        )
        return _sides(train, held)
    except (OSError, UnknownPathError) as error:
        raise FlagError(
            "corpus", f"corpus={corpus!r} cannot be read: {error}; name a folder or a file"
        ) from error


def _cut(text: bytes, held_out: float) -> Mapping[str, bytes]:
    """A single file, its end held out."""
    cut = round(len(text) * (1 - held_out))
    return _sides(text[:cut], text[cut:])


def _sides(train: bytes, held: bytes) -> Mapping[str, bytes]:
    """Side → text."""
    third = len(held) // 3
    return MappingProxyType({TRAIN: train, VALIDATION: held[:third], HELD_OUT: held[third:]})


def _find(root: Path, glob: str, left_out: frozenset[str]) -> list[str]:
    """Files under ``root`` that match, sorted, as relative paths with forward slashes."""
    try:
        if ".." in Path(glob).parts:
            raise ValueError("'..' leads out of the folder")
        paths = sorted(path for path in root.glob(glob) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise FlagError("glob", f"glob={glob!r} is not a pattern of files: {error}") from error
    # one name a file: a link could put the same text on both sides
    once = {path.resolve(): path.relative_to(root) for path in reversed(paths)}
    found = sorted(p.as_posix() for p in once.values() if left_out.isdisjoint(p.parts[:-1]))
    if not found:
        raise FlagError(
            "glob", f"no file in {str(root)!r} matches glob={glob!r}: write for instance '**/*.txt'"
        )
    return found


def _split(files: Sequence[str], held_out: float) -> tuple[Sequence[str], Sequence[str]]:
    """Files for training, and those held out; a file's side depends only on its path and the
    share."""
    sides: dict[str, list[str]] = {TRAIN: [], HELD_OUT: []}
    for file in files:
        digest = hashlib.sha256(os.fsencode(file)).digest()
        share = int.from_bytes(digest[:8], "little") / 2**64
        sides[HELD_OUT if share < held_out else TRAIN].append(file)
    empty = [side for side, chosen in sides.items() if not chosen]
    if empty:
        raise FlagError(
            "held_out",
            f"held_out={held_out} leaves split {listing(empty)} without a file, of {len(files)}: "
            "choose another share, or add files",
        )
    return sides[TRAIN], sides[HELD_OUT]
