"""Tiles of CoPE attention and its kin: what is cut and what a row carries, beyond plain attention.

Shape notation as in `xcope.ops.tiling.tiles`, and p = max_pos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xcope.ops.biased.cpu.eager import Bias
from xcope.ops.tiling import tiles
from xcope.ops.tiling.tiles import Heads


@dataclass
class ForwardRows(tiles.ForwardRows):
    """What the forward carries for the rows of a tile of queries."""

    L: Tensor  # (u R p+…), table logits; wider than the positions, so that f + 1 always exists
    last: int  # the largest position, P − 1
    count: Tensor  # (u R), float64, Σ of gates, or of what decays took, so far
    start: Tensor  # (u R), int32, the key from which on the row is counted; −1: counts on


@dataclass
class BackwardRows(tiles.BackwardRows):
    """What the backward carries for the rows of a tile of queries."""

    L: Tensor  # (u R p+…)
    dL: Tensor  # (u R p+…)
    last: int
    count: Tensor  # (u R), float64, the count at the tile's first key
    lift: Tensor  # (u R), Σ dp over the keys so far
    start: Tensor  # (u R), int32


@dataclass(frozen=True, kw_only=True)
class CopeHeads(Heads):
    """The tensors sorted by key head, and the options; see `xcope.ops.cope.inputs.CopeInputs`.

    Args:
        e: the table (p+… d), or one per head (h p+… d), with rows of zeros at the end; or None.
        max_pos: p.
        gate_k: (u j d), or None.
        r: (u r i c), or None.
        head_mix: (h h), or None; with it r = 1.
        sharpness: of the soft one-hot, 1 / temperature; 0 interpolates.
        bias: of the logits, or None.
    """

    e: Tensor | None
    max_pos: int
    gate_k: Tensor | None
    r: Tensor | None
    head_mix: Tensor | None
    sharpness: float
    bias: Bias | None
    recurrence: str
    gate_scale: float
    rate: float
    own: bool
    remainder: bool
    bare: int
    hidden_gates: bool

    BY_KEY_HEAD: ClassVar[tuple[str, ...]] = ("q", "k", "v", "gate_k", "r")

    @property
    def stick(self) -> bool:
        """Whether weights are shares of a stick: no softmax."""
        return self.recurrence == "stick"

    @property
    def after(self) -> bool:
        """Whether a key's own gate has been counted when its logit is read."""
        return self.stick or not self.own

    def rows_by_head(self, rows: Tensor) -> Tensor:
        """(u R …) → (b h queries …)."""
        return rows.view(-1, self.heads, rows.shape[1] // self.q.shape[1], rows.shape[-1])
