"""Flip-Flop: remember one bit until it is written again.

Liu et al., *Exposing Attention Glitches with Flip-Flop Language Modeling*, arXiv 2306.00946.

A sequence alternates instructions and bits: ``w 1 i 0 i 1 r 1``. The bit after ``w`` (write) is
stored, the one after ``i`` (ignore) means nothing, and the one after ``r`` (read) repeats the
stored one. The first instruction is ``w``, the last ``r``; those between are ``i`` with
probability p, else ``w`` or ``r`` with equal chance: the paper's FFL(p). All other bits are fair
coins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from xcope.tasks.base import Batch, next_token_batch, uniform
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable
from xcope.tasks.words import WordTask

# Tokens 0 and 1 are the bits themselves.
WRITE, READ, SKIP = 2, 3, 4


@register
@dataclass(frozen=True, kw_only=True)
class FlipFlop(Stretchable, WordTask):
    """Sequences of ``2 · instructions`` tokens; scored are the bits after ``r``.

    Args:
        instructions: per sequence, at least 2 (paper: 256).
        p_train: probability of ``i`` in training and in distribution.
        p_dense: of the split ``dense``, where little is ignored.
        p_sparse: of the split ``sparse``, where nearly all is.
        stretch: see `Stretchable`; the longer splits have more instructions and training's p.
    """

    name: ClassVar[str] = "flip_flop"
    paper: ClassVar[str] = "arXiv 2306.00946"
    metric: ClassVar[str] = "error"

    instructions: int = 256
    p_train: float = 0.8
    p_dense: float = 0.1
    p_sparse: float = 0.98

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.instructions >= 2, "instructions", "at least 2, the first w and the last r"
        )
        for option in ("p_train", "p_dense", "p_sparse"):
            self.require(0 <= getattr(self, option) <= 1, option, "a probability from 0 to 1")

    @property
    def words(self) -> tuple[str, ...]:
        return ("0", "1", "w", "r", "i")

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", "dense", "sparse", *self.multiples)

    def ignore_probability(self, split: str) -> float:
        """p of the split's FFL(p)."""
        return self.for_split(
            split,
            {
                "train": self.p_train,
                "in_distribution": self.p_train,
                "dense": self.p_dense,
                "sparse": self.p_sparse,
                **dict.fromkeys(self.multiples, self.p_train),
            },
        )

    def seq_len(self, split: str) -> int:
        return 2 * self.instructions * self.multiple(split)

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        p = self.ignore_probability(split)
        instructions = self.instructions * self.multiple(split)
        shape = (batch_size, instructions)
        u = uniform(shape, generator)
        instruction = torch.full(shape, READ)
        instruction[u < p + (1 - p) / 2] = WRITE
        instruction[u < p] = SKIP
        instruction[:, 0], instruction[:, -1] = WRITE, READ

        drawn = torch.randint(2, shape, generator=generator)
        place = torch.arange(instructions)
        last_write = torch.where(instruction == WRITE, place, 0).cummax(dim=1).values
        read = instruction == READ
        bit = torch.where(read, drawn.gather(1, last_write), drawn)

        sequence = torch.stack((instruction, bit), dim=-1).flatten(1)
        scored = torch.stack((torch.zeros_like(read), read), dim=-1).flatten(1)
        return next_token_batch(sequence, scored)
