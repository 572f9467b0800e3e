"""Tiles of CoPE attention: the tensors of a call and what a row carries, beyond plain attention.

Shape notation as in `xcope.ops.tiling.tiles`, and p = max_pos.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from xcope.ops.biased.cpu.eager import Bias
from xcope.ops.tiling import tiles
from xcope.ops.tiling.tiles import Heads, Sizes, Tile

SPARE = 33  # rows of zeros that a table may be read beyond its end, see `Call.table`


@dataclass
class ForwardRows(tiles.ForwardRows):
    """See there."""

    L: Tensor  # (u R p+…), table logits; wider than the positions, so that f + 1 always exists
    last: int  # the largest position, P − 1
    count: Tensor  # (u R), float64, Σ of gates so far
    start: Tensor  # (u R), int32, the key from which on the row is counted; −1: counts on


@dataclass
class BackwardRows(tiles.BackwardRows):
    """See there."""

    L: Tensor  # (u R p+…)
    dL: Tensor  # (u R p+…)
    last: int
    count: Tensor  # (u R), float64, the count at the tile's first key
    lift: Tensor  # (u R), Σ dp over the keys so far
    start: Tensor  # (u R), int32


class Body(Sizes, Protocol):
    """The elementwise work of a tile. ``a`` is what gates are made of: ``s`` itself or its like."""

    @staticmethod
    def forward(s: Tensor, a: Tensor, rows: ForwardRows, tile: Tile, sharpness: float) -> None:
        """Turns ``s`` into exp(s + b − m) and moves the rows on, ``out`` rescaled to the new m."""

    @staticmethod
    def backward(
        s: Tensor, dp: Tensor, a: Tensor, rows: BackwardRows, tile: Tile, sharpness: float
    ) -> None:
        """Turns ``s`` into prob, ``dp`` = v doutᵀ into ds, ``a`` into da and moves the rows on.

        Where ``a`` is ``s``, ds + da is left in ``dp``.
        """


@dataclass(frozen=True, kw_only=True)
class Call(Heads):
    """The tensors of one call, sorted by key head, and its options.

    Args:
        e: the table (p+… d), or one per head (h p+… d), with ``SPARE`` rows of zeros at the end.
        max_pos: p.
        gate_k: (u j d), or None.
        head_mix: (h h), or None; with it r = 1.
        sharpness: of the soft one-hot, 1 / temperature; 0 interpolates.
        bias: of the logits, or None.
        body: who does the elementwise work.
    """

    e: Tensor
    max_pos: int
    gate_k: Tensor | None
    head_mix: Tensor | None
    sharpness: float
    bias: Bias | None
    body: Body

    def of(self, units: slice, batch: slice) -> Call:
        """See `Heads`."""
        gate_k = None if self.gate_k is None else self.gate_k[units]
        return replace(super().of(units, batch), gate_k=gate_k)

    def table_room(self, rows: Tensor, width: int, name: str) -> Tensor:
        """Room for table logits of the rows (u R …)."""
        u, R = rows.shape[:2]
        return self.memory_for(name, u * R * width).view(u, R, width)

    def table(self, positions: int) -> tuple[Tensor, int]:
        """The rows of the table that are reached, and the largest position, P − 1.

        At least one row is added, and as many as it takes to make a row of table logits an odd
        number of cache lines: else the logits of all queries at one position lie in one cache set.
        """
        p = min(positions, self.max_pos)
        lines = -(-(p + 1) // 16) // 2 * 2 + 1
        return self.e[..., : 16 * lines, :], p - 1

    def rows_by_head(self, rows: Tensor) -> Tensor:
        """(u R …) → (b h queries …)."""
        return rows.view(-1, self.heads, rows.shape[1] // self.q.shape[1], rows.shape[-1])
