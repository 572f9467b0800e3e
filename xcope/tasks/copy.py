"""Copy: repeat a random string, trained on short strings, tested on long ones.

Kazemnejad et al., *The Impact of Positional Encoding on Length Generalization in Transformers*,
arXiv 2305.19466; Jelassi et al., *Repeat After Me: Transformers are Better than State Space Models
at Copying*, arXiv 2402.01032.

A string, a separator, the string again and an end: ``7 2 7 | 7 2 7 .``. Where a stretch of it
occurs only once, what follows can be found by content, as an induction head does; where the string
repeats itself, the model has to know how far it is.

From the generator of the former (McGill-NLP/length-generalization): strings are drawn evenly with
repetition, and training's have every length up to ``length`` equally often. Ours: from 1 on (theirs
from 4), fewer values (theirs are 100), tests 2, 4 and 8 times as long (theirs up to twice).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from xcope.tasks.base import Batch, next_token_batch
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable
from xcope.tasks.words import WordTask

END, SEPARATOR, FIRST_VALUE = 0, 1, 2


@register
@dataclass(frozen=True, kw_only=True)
class Copy(Stretchable, WordTask):
    """Sequences of ``2 · length + 2`` tokens; scored are the copied tokens and the end.

    In training and in distribution the string's length is drawn from 1 … ``length``, and ``.``
    fills what is left after the end; in the longer splits it is the stated multiple of ``length``.
    The copied tokens are inputs too (teacher forcing).

    Args:
        length: of training's strings, at most.
        values: different tokens of a string (our choice of size).
        stretch: see `Stretchable`.
    """

    name: ClassVar[str] = "copy"
    paper: ClassVar[str] = "arXiv 2305.19466, 2402.01032"
    metric: ClassVar[str] = "error"

    length: int = 16
    values: int = 16
    stretch: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.length >= 1, "length", "at least 1")
        self.require(self.values >= 2, "values", "at least 2, else there is nothing to tell apart")

    @property
    def words(self) -> tuple[str, ...]:
        return (".", "|", *map(str, range(self.values)))

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", *self.multiples)

    def seq_len(self, split: str) -> int:
        return 2 * self.multiple(split) * self.length + 2

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        most = self.multiple(split) * self.length
        fewest = most if split in self.multiples else 1
        length = torch.randint(fewest, most + 1, (batch_size, 1), generator=generator)
        value = torch.randint(self.values, (batch_size, most), generator=generator) + FIRST_VALUE

        place = torch.arange(2 * most + 2)
        copied = place - length - 1  # place in the string of what stands there the second time
        source = torch.where(copied >= 0, copied, place).clamp(max=most - 1)
        sequence = value.gather(1, source)
        sequence = sequence.masked_fill(copied >= length, END).masked_fill(copied == -1, SEPARATOR)
        return next_token_batch(sequence, (copied >= 0) & (copied <= length))
