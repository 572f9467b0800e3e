"""What schemes have in common that own a table of positions which queries are dotted with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.positions.base import AttendModule, Scheme

BLOCK = "block"


class Table(AttendModule):
    """A table of positions, ``pos_emb``.

    Args:
        of: its shape without the positions, (dim) or (heads dim).
        max_pos: how many positions; "block": it waits to be told, see `fit`.
        init_std: the standard deviation with which it begins; 0: zeros.
        scaled: what is read of it is scaled as the logits are.
        flag: by which errors name ``max_pos``.
    """

    beside_block: ClassVar[int] = 0
    """How many positions a table for a block of tokens has beside one for each of them."""

    def __init__(
        self,
        of: tuple[int, ...],
        max_pos: int | str,
        *,
        init_std: float,
        scaled: bool,
        flag: str,
    ) -> None:
        super().__init__()
        if isinstance(max_pos, int) and max_pos < 1:
            raise FlagError(flag, f"{flag}={max_pos} must be at least 1")
        self.init_std, self.scaled, self.flag = init_std, scaled, flag
        self.waits = max_pos == BLOCK
        self.pos_emb = nn.Parameter(torch.empty(*of[:-1], 0, of[-1]))
        self._make(0 if isinstance(max_pos, str) else max_pos)

    def _make(self, max_pos: int) -> None:
        self.max_pos = max_pos
        table = self.pos_emb.new_zeros(*self.pos_emb.shape[:-2], max_pos, self.pos_emb.shape[-1])
        self.pos_emb = nn.Parameter(table, requires_grad=self.pos_emb.requires_grad)
        if self.init_std > 0:
            nn.init.normal_(self.pos_emb, std=self.init_std)

    def fit(self, block: int) -> None:
        """Make a table that waits to be told how many tokens a row has in training."""
        if self.waits:
            self.waits = False
            self._make(block + self.beside_block)

    def table(self, scale: float) -> Tensor:
        """The table as queries read it; ``scale`` is the logits'.

        Raises:
            FlagError: nobody said how long rows are in training.
        """
        if self.waits:
            raise FlagError(
                self.flag,
                f"{self.flag}='{BLOCK}' is as long as rows in training, and nothing said how long "
                "these are: put the decoder into a TransformerWrapper, whose max_seq_len says it, "
                "or give a number",
            )
        return self.pos_emb * scale if self.scaled else self.pos_emb

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """See `AttendModule`; positions beyond a table shared its last entry, and begin as it."""
        new = self.pos_emb
        if name != "pos_emb" or old.shape[:-2] + old.shape[-1:] != new.shape[:-2] + new.shape[-1:]:
            return None
        rows = min(old.shape[-2], self.max_pos)
        last = old[..., -1:, :].expand(*old.shape[:-2], self.max_pos - rows, -1)
        return torch.cat((old[..., :rows, :], last), dim=-2)


@dataclass(frozen=True, kw_only=True)
class TableScheme(Scheme):
    """A scheme whose modules have a `Table`."""

    beside_block: ClassVar[int] = Table.beside_block
    max_pos: int | str

    def fitted(self, block: int) -> Self:
        """The same, "block" replaced by the size for so many tokens of a row in training."""
        if self.max_pos != BLOCK:
            return self
        return dataclasses.replace(self, max_pos=block + self.beside_block)

    def require_max_pos(self) -> None:
        """Raise a `FlagError` unless ``max_pos`` is a size, or "block"."""
        if isinstance(self.max_pos, str):
            allowed = f"an int, or '{BLOCK}': as many as tokens of a row in training"
            self.require(self.max_pos == BLOCK, "max_pos", allowed)
        else:
            self.require(self.max_pos >= 1, "max_pos", "it must be at least 1")
