"""Recall: pairs of a key and a value, then the keys again, each to be followed by its value.

Arora et al., *Zoology: Measuring and Improving Recall in Efficient Language Models*, arXiv
2312.04927: multi-query associative recall. ``k3 v1 k0 v7 . . k0 v7 . k3 v1``.

From the authors' generator (HazyResearch/zoology): the keys of a sequence differ, and each is asked
once, some way after the pairs. Ours: values may repeat within a sequence (theirs differ), a few
dozen words (theirs are thousands), the asked keys and blanks in random order (theirs prefer short
gaps, by a power law), blanks between them (theirs are random words), and the answer stands after
the asked key (theirs is a target only).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from xcope.tasks.base import Batch, next_token_batch, uniform
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable
from xcope.tasks.words import WordTask

BLANK, FIRST_KEY = 0, 1


@register
@dataclass(frozen=True, kw_only=True)
class Recall(Stretchable, WordTask):
    """Sequences of ``4 · pairs + blanks`` tokens; scored are the values after the asked keys.

    Split ``more_pairs`` has more pairs and training's number of blanks. Splits ``longer_2x``, …
    have training's number of pairs, and so many blanks that the sequence is that much longer.

    Args:
        pairs: per sequence, in training and in distribution.
        more_pairs: of the split of that name; None: twice as many.
        blanks: per sequence, in training and in distribution.
        keys: different keys to draw from.
        values: different values to draw from.
        stretch: see `Stretchable`.
    """

    name: ClassVar[str] = "recall"
    paper: ClassVar[str] = "arXiv 2312.04927"
    metric: ClassVar[str] = "error"

    pairs: int = 8
    more_pairs: int | None = None
    blanks: int = 32
    keys: int = 32
    values: int = 32
    stretch: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        more = self.number_of_pairs("more_pairs")
        self.require(self.pairs >= 1, "pairs", "at least 1")
        self.require(more > self.pairs, "more_pairs", f"more than pairs, {self.pairs}")
        self.require(self.blanks >= 0, "blanks", "0 or more")
        self.require(self.keys >= more, "keys", f"a different one for each of {more} pairs")
        self.require(self.values >= 2, "values", "at least 2, else there is nothing to tell apart")

    @property
    def words(self) -> tuple[str, ...]:
        keys, values = range(self.keys), range(self.values)
        return (".", *(f"k{key}" for key in keys), *(f"v{value}" for value in values))

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", "more_pairs", *self.multiples)

    def number_of_pairs(self, split: str) -> int:
        """Pairs per sequence of the split."""
        if split == "more_pairs":
            return 2 * self.pairs if self.more_pairs is None else self.more_pairs
        return self.pairs

    def seq_len(self, split: str) -> int:
        return self.multiple(split) * (4 * self.number_of_pairs(split) + self.blanks)

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        pairs, length = self.number_of_pairs(split), self.seq_len(split)
        shuffled = uniform((batch_size, self.keys), generator).argsort(dim=1, stable=True)
        key = FIRST_KEY + shuffled[:, :pairs]
        value = torch.randint(self.values, (batch_size, pairs), generator=generator)
        value += FIRST_KEY + self.keys
        order = uniform((batch_size, pairs), generator).argsort(dim=1, stable=True)
        # a question is a key and its answer: one slot of the rest, and one token more
        slots = uniform((batch_size, length - 3 * pairs), generator).argsort(dim=1, stable=True)
        asked = 2 * pairs + slots[:, :pairs].sort(dim=1).values + torch.arange(pairs)

        sequence = torch.full((batch_size, length), BLANK)
        sequence[:, : 2 * pairs] = torch.stack((key, value), dim=-1).flatten(1)
        sequence.scatter_(1, asked, key.gather(1, order))
        sequence.scatter_(1, asked + 1, value.gather(1, order))
        scored = torch.zeros_like(sequence, dtype=torch.bool).scatter_(1, asked + 1, True)
        return next_token_batch(sequence, scored)
