"""Counting: the value of a variable after a program of resets and increments.

Golovneva et al., *Contextual Position Encoding: Learning to Count What's Important*, arXiv
2405.18719. A program sets variables to 0, increments them, or passes; then one is printed:
``b=0 a=0 pass b++ a++ pass b++ print(b) 2``. Each command is one token, as are the query
``print(b)`` and the answer, so a program of ``length`` commands is ``length`` + 2 tokens long.

From the authors' generator (facebookresearch/RAM, projects/cope/scripts/count_data_gen.py): set,
increment and pass have weights 1, 7 and 50, variables are chosen evenly, values go up to 10, there
is one query at the end, only the answer is trained on, and programs have up to 512 commands.

Ours: every program has the same number of commands (theirs vary from 3 to the maximum), a command
is one token (theirs are one to four words), the program begins by setting every variable once in
random order (theirs draws again until the printed one is set), and an increment that would
pass ``max_value`` is a ``pass`` instead (theirs draws another command). No value is thus ever
above ``max_value``, in any split, and every answer is in the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar

import torch
from torch import Tensor

from xcope.tasks.base import Batch, next_token_batch, uniform
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable
from xcope.tasks.words import WordTask

PASS = 0


@register
@dataclass(frozen=True, kw_only=True)
class Counting(Stretchable, WordTask):
    """Sequences of ``length + 2`` tokens; scored is the answer, the last of them.

    Split ``longer`` has longer programs, so its answers are larger on average than those of
    training. Split ``longer_pass`` has training's programs, made as long by ``pass`` commands at
    random places after the first settings: its answers are distributed as training's. Splits
    ``longer_2x``, … are as ``longer``, at other lengths.

    Args:
        variables: 1 to 26, called a, b, c, …; the paper has 1, 3 and 5.
        length: commands per program in training and in distribution, the settings at the
            beginning included.
        longer: commands per program of both longer splits; None: twice ``length``.
        max_value: the largest value a variable can have.
        set_weight: how often a command is ``x=0``, relative to the other two weights.
        increment_weight: how often it is ``x++``.
        pass_weight: how often it is ``pass``.
        stretch: see `Stretchable`.
    """

    name: ClassVar[str] = "counting"
    paper: ClassVar[str] = "arXiv 2405.18719"
    metric: ClassVar[str] = "error"

    variables: int = 1
    length: int = 32
    longer: int | None = None
    max_value: int = 10
    set_weight: int = 1
    increment_weight: int = 7
    pass_weight: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        most = len(ascii_lowercase)
        self.require(1 <= self.variables <= most, "variables", f"1 to {most}, one a letter")
        self.require(
            self.length > self.variables,
            "length",
            f"more commands than the {self.variables} that set each variable at the beginning",
        )
        self.require(
            self.commands("longer") > self.length, "longer", f"more than length, {self.length}"
        )
        self.require(self.max_value >= 1, "max_value", "at least 1")
        self.require(self.set_weight >= 0, "set_weight", "0 or more")
        self.require(self.increment_weight >= 1, "increment_weight", "at least 1")
        self.require(self.pass_weight >= 0, "pass_weight", "0 or more")

    @property
    def words(self) -> tuple[str, ...]:
        names = ascii_lowercase[: self.variables]
        return (
            "pass",
            *(f"{name}=0" for name in names),
            *(f"{name}++" for name in names),
            *(f"print({name})" for name in names),
            *map(str, range(self.max_value + 1)),
        )

    @property
    def splits(self) -> tuple[str, ...]:
        return ("in_distribution", "longer", "longer_pass", *self.multiples)

    def commands(self, split: str) -> int:
        """Commands per program of the split."""
        if split in ("longer", "longer_pass"):
            return 2 * self.length if self.longer is None else self.longer
        return self.multiple(split) * self.length

    def seq_len(self, split: str) -> int:
        return self.commands(split) + 2

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        commands = self.commands(split)
        drawn = self.length if split == "longer_pass" else commands
        program, values = self._programs(batch_size, drawn, generator)
        if commands > drawn:
            program = self._spread(program, commands, generator)
        asked = torch.randint(self.variables, (batch_size, 1), generator=generator)
        query = 1 + 2 * self.variables + asked
        answer = 1 + 3 * self.variables + values.gather(1, asked)
        sequence = torch.cat((program, query, answer), dim=1)
        return next_token_batch(sequence, torch.arange(sequence.shape[1]) == commands + 1)

    def _programs(
        self, batch_size: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Programs (b length) in tokens, and the variables' values at their end, (b variables)."""
        shape, opening = (batch_size, length), slice(self.variables)
        changing = self.set_weight + self.increment_weight
        kind = torch.randint(changing + self.pass_weight, shape, generator=generator)
        sets, increments = kind < self.set_weight, (self.set_weight <= kind) & (kind < changing)
        sets[:, opening], increments[:, opening] = True, False
        variable = torch.randint(self.variables, shape, generator=generator)
        order = uniform((batch_size, self.variables), generator)
        variable[:, opening] = order.argsort(dim=1, stable=True)

        own = variable[..., None] == torch.arange(self.variables)  # (b length variables)
        count = (own & increments[..., None]).cumsum(dim=1)
        # counts never fall, so the largest count at a setting is that of the last setting
        at_setting = torch.where(own & sets[..., None], count, 0).cummax(dim=1).values
        value = count - at_setting
        increments &= value.gather(2, variable[..., None])[..., 0] <= self.max_value

        program = torch.full(shape, PASS)
        program = torch.where(sets, 1 + variable, program)
        program = torch.where(increments, 1 + self.variables + variable, program)
        return program, value[:, -1].clamp(max=self.max_value)

    def _spread(self, program: Tensor, commands: int, generator: torch.Generator) -> Tensor:
        """``program`` made ``commands`` long by ``pass`` at random places after the opening."""
        opening, rest = program.tensor_split((self.variables,), dim=1)
        size = (program.shape[0], commands - self.variables)
        shuffled = uniform(size, generator).argsort(dim=1, stable=True)
        places = shuffled[:, : rest.shape[1]].sort(dim=1).values
        return torch.cat((opening, torch.full(size, PASS).scatter_(1, places, rest)), dim=1)
