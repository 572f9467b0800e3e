"""Text: a byte-level language model of source code or any other text (`xcope.tasks.corpus`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.tasks.base import Batch
from xcope.tasks.corpus import CorpusTask
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable


@register
@dataclass(frozen=True, kw_only=True)
class Text(Stretchable, CorpusTask):
    """Random windows of ``length`` bytes; the byte after each of them is scored.

    Windows begin anywhere and may run from one file into the next of the same split. Splits
    ``longer_2x``, … have longer windows of the held-out text.

    Args:
        length: bytes per window, in training and held out.
        stretch: see `Stretchable`.
        corpus: see `CorpusTask`, as ``glob`` and ``held_out``.
    """

    name: ClassVar[str] = "text"
    paper: ClassVar[str] = "-"
    metric: ClassVar[str] = "bits_per_byte"

    length: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.length >= 1, "length", "at least 1 byte")

    def check_data(self) -> None:
        for split in self.every_split:
            self.text(split)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("held_out", *self.multiples)

    def text(self, split: str) -> Tensor:
        """All text of the split, (bytes) uint8, each file ended by a zero byte.

        Raises:
            FlagError: a text too short for a window and its next byte.
        """
        text = _tensor(self.source(split))
        has, needs = len(text), self.seq_len(split) + 1
        self.require(
            has >= needs,
            "stretch" if split in self.multiples else "length",
            f"split {split!r} has {has} bytes, and a window with its next byte must fit, "
            f"{needs} bytes",
        )
        return text

    def seq_len(self, split: str) -> int:
        return self.multiple(split) * self.length

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        text, length = self.text(split), self.seq_len(split)
        start = torch.randint(len(text) - length, (batch_size, 1), generator=generator)
        window = text[start + torch.arange(length + 1)].long()
        return Batch(window[:, :-1], window[:, 1:])


@functools.lru_cache(maxsize=16)
def _tensor(text: bytes) -> Tensor:
    """(bytes) uint8."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0).byte()
