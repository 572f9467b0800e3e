"""Tasks that are also tested on sequences two, four, … times as long as those of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xcope.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Stretchable(Task):
    """A task whose size can be multiplied for a test.

    Args:
        stretch: the longest test as a multiple of training's size, a power of two: splits
            ``longer_2x``, ``longer_4x``, … up to it; 1: none.
    """

    stretch: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        power = self.stretch >= 1 and self.stretch & (self.stretch - 1) == 0
        self.require(power, "stretch", "a power of two: 1, 2, 4, 8, …")

    @property
    def multiples(self) -> Mapping[str, int]:
        """The splits that ``stretch`` adds → how many times training's size they have."""
        powers = range(1, self.stretch.bit_length())
        return {f"longer_{2**power}x": 2**power for power in powers}

    @property
    def length_splits(self) -> tuple[str, ...]:
        return (self.splits[0], *self.multiples)

    def multiple(self, split: str) -> int:
        """How many times training's size the split has; 1 for those that ``stretch`` did not add.

        Raises:
            FlagError: a split that is not there (flag ``split``).
        """
        return self.for_split(split, dict.fromkeys(self.every_split, 1) | dict(self.multiples))
