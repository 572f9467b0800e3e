"""Indexing: the k-th word, or the first word of the k-th line, of real text, byte by byte.

A text, a number and the word: ``for every line in text:\\n#3:line\\n``. Words are no tokens to a
model of bytes: it has to count spaces or line ends, which stand at other places in every text. This
is what contextual positions are for (Golovneva et al., *Contextual Position Encoding: Learning to
Count What's Important*, arXiv 2405.18719); the task is ours. The text is that of
`xcope.tasks.corpus` with white space evened out: one space between words, and between lines one
line end, without empty lines.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.tasks.base import Batch, next_token_batch, uniform
from xcope.tasks.corpus import CorpusTask
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable

SPACE, LINE_END, FILLER = b" ", b"\n", b"\0"
MOST_ASKED = 1000
"""The largest ``max_k``: which k may be asked is tried for every word of the text."""


@register
@dataclass(frozen=True, kw_only=True)
class Indexing(Stretchable, CorpusTask):
    """Sequences ``<text>\\n#<k>:<word>\\n`` and zero bytes; scored are the word and its line end.

    A text is as many consecutive words (or lines) as fit into ``length`` bytes, from anywhere in
    the files; k is drawn from those that may be asked. All tests are on held-out files. Splits
    ``longer_2x``, … have longer texts and training's k; split ``larger_k`` has twice the length,
    and k above any of training: a number that was never asked, so a hard one.

    Args:
        unit: ``"word"``, or ``"line"``: the k-th line's first word is asked.
        backwards: count from the end of the text.
        length: bytes of a text in training, at most.
        max_k: the largest k of training; ``larger_k`` has those up to twice as large.
        longest_word: bytes of a word that is asked, at most; longer ones are counted only.
        stretch: see `Stretchable`.
        corpus: see `CorpusTask`, as ``glob``, ``field``, ``held_out`` and ``validation_share``.
    """

    name: ClassVar[str] = "indexing"
    paper: ClassVar[str] = "-"
    metric: ClassVar[str] = "sequence_error"

    unit: str = "word"
    backwards: bool = False
    length: int = 32
    max_k: int = 4
    longest_word: int = 12
    stretch: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.unit in ("word", "line"), "unit", "'word' or 'line'")
        self.require(self.length >= 1, "length", "at least 1 byte")
        self.require(self.max_k >= 2, "max_k", "at least 2, else there is nothing to count")
        self.require(self.max_k <= MOST_ASKED, "max_k", f"at most {MOST_ASKED}")
        self.require(self.longest_word >= 1, "longest_word", "at least 1 byte")

    def check_data(self) -> None:
        for split in self.every_split:
            self.starts(split)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", "larger_k", *self.multiples)

    def text_len(self, split: str) -> int:
        """Bytes of a text of the split, at most."""
        return self.length * (2 if split == "larger_k" else self.multiple(split))

    def asked(self, split: str) -> range:
        """The numbers k that the split may ask for."""
        larger = split == "larger_k"
        return range(self.max_k + 1, 2 * self.max_k + 1) if larger else range(1, self.max_k + 1)

    def seq_len(self, split: str) -> int:
        longest = len(question(self.asked(split)[-1]))
        return self.text_len(split) + longest + self.longest_word + len(LINE_END)

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        pieces, starts, length = self.pieces(split), self.starts(split), self.seq_len(split)
        first = starts[torch.randint(len(starts), (batch_size,), generator=generator)]
        at, may = self.may_ask(split, first)
        chance = uniform((batch_size, len(self.asked(split))), generator)
        chosen = chance.masked_fill(~may, -1.0).argmax(dim=1)

        rows, begins = bytearray(), []
        last = first + pieces.fitting(first, self.text_len(split)) - 1
        for i, which in enumerate(chosen.tolist()):
            begin, end = int(pieces.start[first[i]]), int(pieces.end[last[i]])
            prompt = pieces.text[begin:end] + question(self.asked(split)[which])
            row = prompt + pieces.word(int(at[i, which])) + LINE_END
            rows += row.ljust(length, FILLER)
            begins.append((len(prompt), len(row)))
        sequence = torch.frombuffer(rows, dtype=torch.uint8).view(batch_size, length).long()
        begin, end = torch.tensor(begins).T[..., None]
        place = torch.arange(length)
        return next_token_batch(sequence, (begin <= place) & (place < end))

    def pieces(self, split: str) -> Pieces:
        """The words or lines that the split is drawn from."""
        return _pieces(self.source(split), self.unit)

    def starts(self, split: str) -> Tensor:
        """The pieces that a text of the split may begin with, (n) int64.

        Raises:
            FlagError: there is none.
        """
        starts = _starts(self, split)
        if not len(starts):
            raise FlagError(
                "length",
                f"split {split!r} has no text of {self.text_len(split)} bytes with a "
                f"{self.unit} to ask for: raise length, or lower max_k, {self.max_k}",
            )
        return starts

    def may_ask(self, split: str, first: Tensor) -> tuple[Tensor, Tensor]:
        """Which piece each k means where a text begins with piece ``first`` (b), and whether it
        may be asked: (b k) each."""
        pieces = self.pieces(split)
        fitting = pieces.fitting(first, self.text_len(split))[:, None]
        k = torch.tensor(self.asked(split))
        at = first[:, None] + (fitting - k if self.backwards else k - 1)
        there = k <= fitting
        at = torch.where(there, at, 0)
        word_len = pieces.word_len[at]  # 0: a corpus without a word
        return at, there & (word_len > 0) & (word_len <= self.longest_word)


@dataclass(frozen=True, eq=False)
class Pieces:
    """A text cut into words or lines.

    Args:
        text: one space between two words, one line end between two lines.
        start: of each piece, in bytes; (pieces) int64.
        end: where each piece ends, exclusive.
        word_len: bytes of each piece's first word.
    """

    text: bytes
    start: Tensor
    end: Tensor
    word_len: Tensor

    def fitting(self, first: Tensor, length: int) -> Tensor:
        """How many pieces, from ``first`` on, fit into ``length`` bytes."""
        return torch.searchsorted(self.end, self.start[first] + length, right=True) - first

    def word(self, piece: int) -> bytes:
        """The first word of a piece."""
        start = int(self.start[piece])
        return self.text[start : start + int(self.word_len[piece])]


def question(k: int) -> bytes:
    """What stands between the text and the word: ``\\n#3:``."""
    return f"\n#{k}:".encode()


@functools.lru_cache(maxsize=8)
def _pieces(source: bytes, unit: str) -> Pieces:
    # the zero byte that ends a file ends its last line
    lines = [SPACE.join(line.split()) for line in source.replace(FILLER, LINE_END).splitlines()]
    between = SPACE if unit == "word" else LINE_END
    text = between.join(line for line in lines if line)
    byte = torch.frombuffer(bytearray(text + between), dtype=torch.uint8)
    end = (byte == between[0]).nonzero()[:, 0]
    start = torch.cat((torch.zeros(1, dtype=torch.int64), end[:-1] + 1))
    gap = ((byte == SPACE[0]) | (byte == LINE_END[0])).nonzero()[:, 0]
    return Pieces(text, start, end, gap[torch.searchsorted(gap, start)] - start)


@functools.lru_cache(maxsize=64)
def _starts(task: Indexing, split: str) -> Tensor:
    """The pieces that a text may begin with, those from which some k may be asked: (n) int64."""
    every = torch.arange(len(task.pieces(split).start))
    return torch.cat(
        [
            part[task.may_ask(split, part)[1].any(dim=1)]
            for part in torch.split(every, 2**24 // task.max_k)
        ]
    )
