"""Selective copy: repeat the tokens that are not blank, in order.

Gu and Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, arXiv 2312.00752;
with fewer or more blanks in the test than in training as in Golovneva et al., *Contextual
Position Encoding*, arXiv 2405.18719, whose sizes are 256 + 256 with 128 and 512 blanks in the
tests.

A sequence is non-blank tokens scattered among blanks, a separator, and the non-blank tokens
again: ``. 7 . . 2 | 7 2``. The k-th copied token is the k-th that is not blank, wherever it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from xcope.tasks.base import Batch, next_token_batch, uniform
from xcope.tasks.registry import register
from xcope.tasks.words import WordTask

BLANK, SEPARATOR, FIRST_VALUE = 0, 1, 2


@register
@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(WordTask):
    """Sequences of ``blanks + 2 · tokens + 1`` tokens; scored are the copied ones.

    The copied tokens are inputs too (teacher forcing). Values are drawn evenly with repetition,
    and every choice of the blanks' places is equally likely.

    Args:
        tokens: non-blank tokens per sequence, in every split.
        blanks: per sequence, in training and in distribution.
        dense_blanks: of the split ``dense``, fewer than ``blanks``; None: half of them.
        sparse_blanks: of the split ``sparse``, more than ``blanks``; None: twice as many.
        values: different non-blank tokens (our choice of size).
    """

    name: ClassVar[str] = "selective_copy"
    paper: ClassVar[str] = "arXiv 2312.00752, 2405.18719"
    metric: ClassVar[str] = "error"

    tokens: int = 16
    blanks: int = 16
    dense_blanks: int | None = None
    sparse_blanks: int | None = None
    values: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.tokens >= 1, "tokens", "at least 1")
        self.require(self.blanks >= 1, "blanks", "at least 1")
        self.require(self.values >= 2, "values", "at least 2, else there is nothing to tell apart")
        dense, sparse = self.number_of_blanks("dense"), self.number_of_blanks("sparse")
        limits = f"blanks is {self.blanks}"
        self.require(0 <= dense < self.blanks, "dense_blanks", f"0 or more, below blanks; {limits}")
        self.require(sparse > self.blanks, "sparse_blanks", f"it must exceed blanks; {limits}")

    @property
    def words(self) -> tuple[str, ...]:
        return (".", "|", *map(str, range(self.values)))

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", "dense", "sparse")

    def number_of_blanks(self, split: str) -> int:
        """Blanks per sequence of the split."""
        dense, sparse = self.dense_blanks, self.sparse_blanks
        return self.for_split(
            split,
            {
                "train": self.blanks,
                "in_distribution": self.blanks,
                "dense": self.blanks // 2 if dense is None else dense,
                "sparse": 2 * self.blanks if sparse is None else sparse,
            },
        )

    def seq_len(self, split: str) -> int:
        return self.number_of_blanks(split) + 2 * self.tokens + 1

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        context_len = self.number_of_blanks(split) + self.tokens
        value = torch.randint(self.values, (batch_size, self.tokens), generator=generator)
        value += FIRST_VALUE
        shuffled = uniform((batch_size, context_len), generator).argsort(dim=1, stable=True)
        places = shuffled[:, : self.tokens].sort(dim=1).values

        context = torch.full((batch_size, context_len), BLANK).scatter_(1, places, value)
        separator = torch.full((batch_size, 1), SEPARATOR)
        sequence = torch.cat((context, separator, value), dim=1)
        return next_token_batch(sequence, torch.arange(sequence.shape[1]) > context_len)
