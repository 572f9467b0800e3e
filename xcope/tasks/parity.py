"""Parity: whether the number of ones is even or odd, trained on short strings, tested on long ones.

Kazemnejad et al., *The Impact of Positional Encoding on Length Generalization in Transformers*,
arXiv 2305.19466.

A string of fair bits, a query and the answer: ``1 0 1 1 ? odd``. Asked in this way, small models
with each of the four schemes that we tried learned the lengths of training and guessed beyond them,
so the schemes cannot be told apart. So ``scratchpad``, the default, has the parity after each bit:
``1 odd 0 odd 1 even 1 odd``. Each answer follows from the one before and one bit, if the model
finds these two at any length.

From the authors' generator (McGill-NLP/length-generalization): training strings have every length
up to ``length`` equally often. Ours: from 1 bit on (theirs from 3), tests 2, 4 and 8 times as long
(theirs up to twice), tokens instead of English sentences, and a scratchpad of answers only (theirs
spells out each step after the string).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from xcope.tasks.base import Batch, next_token_batch
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable
from xcope.tasks.words import WordTask

# Tokens 0 and 1 are the bits themselves.
QUERY, EVEN, ODD, FILLER = 2, 3, 4, 5


@register
@dataclass(frozen=True, kw_only=True)
class Parity(Stretchable, WordTask):
    """Bits and their parity; scored are the answers, ``even`` or ``odd``.

    With a scratchpad sequences have ``2 · length`` tokens, an answer after each bit. Without, they
    have ``length + 2`` and one answer: in training and in distribution the number of bits is drawn
    from 1 … ``length``, and ``.`` fills what is left after the answer; in the longer splits it is
    the stated multiple of ``length``.

    Args:
        length: bits in training, at most.
        scratchpad: an answer after each bit, not only after the last.
        stretch: see `Stretchable`.
    """

    name: ClassVar[str] = "parity"
    paper: ClassVar[str] = "arXiv 2305.19466"
    metric: ClassVar[str] = "error"

    length: int = 16
    scratchpad: bool = True
    stretch: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.length >= 1, "length", "at least 1 bit")

    @property
    def words(self) -> tuple[str, ...]:
        return ("0", "1", "?", "even", "odd", ".")

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", *self.multiples)

    def bits(self, split: str) -> int:
        """Bits per sequence of the split, at most."""
        return self.multiple(split) * self.length

    def seq_len(self, split: str) -> int:
        return 2 * self.bits(split) if self.scratchpad else self.bits(split) + 2

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        most = self.bits(split)
        bit = torch.randint(2, (batch_size, most), generator=generator)
        answer = EVEN + bit.cumsum(dim=1) % 2
        if self.scratchpad:
            sequence = torch.stack((bit, answer), dim=-1).flatten(1)
            return next_token_batch(sequence, torch.arange(2 * most) % 2 == 1)

        fewest = most if split in self.multiples else 1
        bits = torch.randint(fewest, most + 1, (batch_size, 1), generator=generator)
        place = torch.arange(most + 2)
        sequence = torch.full((batch_size, most + 2), FILLER)
        sequence[:, :most] = bit.masked_fill(place[:most] >= bits, FILLER)
        sequence.scatter_(1, bits, QUERY).scatter_(1, bits + 1, answer.gather(1, bits - 1))
        return next_token_batch(sequence, place == bits + 1)
