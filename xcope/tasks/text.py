"""Text: a byte-level language model of source code or any other text.

The corpus is Python's own standard library, found on the machine, so nothing is downloaded; it
differs a little between Python versions and so do the numbers. A folder or a file of one's own can
be named instead. Files are split into training and held-out text by a hash of their path, so a
file keeps its side whatever else is added.
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
from typing import ClassVar

import torch
from torch import Tensor

from xcope.errors import FlagError, listing
from xcope.tasks.base import Batch, Task
from xcope.tasks.registry import register

SEPARATOR = b"\0"
"""Ends each file; text has no such byte."""
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
"""Folders of the standard library that are skipped: installed packages, and tests, which not
every machine has."""


@register
@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """Random windows of ``length`` bytes; the byte after each of them is scored.

    Windows begin anywhere and may run from one file into the next of the same split. The corpus
    is read once per process, when the first such task is made.

    Args:
        length: bytes per window, in training and held out.
        corpus: a folder or a single file, relative to the working folder; None: the standard
            library without tests and installed packages. A single file is cut in two, its end
            held out.
        glob: the files of the folder, as `pathlib.Path.glob` understands it; ``**/`` includes
            subfolders. A single file ignores it.
        held_out: share of the files (of a single file's bytes) that is held out, between 0 and 1.
    """

    name: ClassVar[str] = "text"
    paper: ClassVar[str] = "-"
    metric: ClassVar[str] = "bits_per_byte"

    length: int = 256
    corpus: str | None = None
    glob: str = "**/*.py"
    held_out: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.length >= 1, "length", "at least 1 byte")
        self.require(0 < self.held_out < 1, "held_out", "a share between 0 and 1")
        for split, text in self._texts.items():
            self.require(
                len(text) > self.length,
                "length",
                f"split {split!r} has {len(text)} bytes, and a window with its next byte must fit",
            )

    @property
    def num_tokens(self) -> int:
        return 256

    @property
    def splits(self) -> tuple[str, ...]:
        return ("held_out",)

    def text(self, split: str) -> Tensor:
        """All text of the split, (bytes) uint8, each file ended by a zero byte."""
        return self.for_split(split, self._texts)

    def seq_len(self, split: str) -> int:
        self.text(split)
        return self.length

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        text = self.text(split)
        start = torch.randint(len(text) - self.length, (batch_size, 1), generator=generator)
        window = text[start + torch.arange(self.length + 1)].long()
        return Batch(window[:, :-1], window[:, 1:])

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes."""
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, tokens: list[int]) -> str:
        """Text of UTF-8 bytes; what is no valid UTF-8 becomes U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")

    @property
    def _texts(self) -> Mapping[str, Tensor]:
        return _read(self.corpus, self.glob, self.held_out)


@functools.lru_cache(maxsize=8)
def _read(corpus: str | None, glob: str, held_out: float) -> Mapping[str, Tensor]:
    """The corpus as split → (bytes) uint8."""
    try:
        root = Path(sysconfig.get_paths()["stdlib"] if corpus is None else corpus).expanduser()
        if root.is_file():
            whole = root.read_bytes()
            cut = round(len(whole) * (1 - held_out))
            parts = {"train": whole[:cut], "held_out": whole[cut:]}
        elif root.is_dir():
            files = _find(root, glob, LEFT_OUT if corpus is None else frozenset())
            parts = {
                split: b"".join((root / file).read_bytes() + SEPARATOR for file in chosen)
                for split, chosen in _split(files, held_out).items()
            }
        else:
            raise FileNotFoundError(f"{str(root)!r} does not exist")
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of "~name"
        raise FlagError(
            "corpus", f"corpus={corpus!r} cannot be read: {error}; name a folder or a file"
        ) from error
    return MappingProxyType(
        {
            split: torch.frombuffer(bytearray(part), dtype=torch.uint8)
            if part
            else torch.empty(0, dtype=torch.uint8)
            for split, part in parts.items()
        }
    )


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


def _split(files: Sequence[str], held_out: float) -> Mapping[str, Sequence[str]]:
    """Files of each split; a file's side depends on its own path and the share alone."""
    sides: dict[str, list[str]] = {"train": [], "held_out": []}
    for file in files:
        digest = hashlib.sha256(os.fsencode(file)).digest()
        share = int.from_bytes(digest[:8], "little") / 2**64
        sides["held_out" if share < held_out else "train"].append(file)
    empty = [split for split, chosen in sides.items() if not chosen]
    if empty:
        raise FlagError(
            "held_out",
            f"held_out={held_out} leaves split {listing(empty)} without a file, of {len(files)}: "
            "choose another share, or add files",
        )
    return sides
