"""Tiles of CoPE attention: the tensors of a call, how they are cut, and what a row carries.

Shape notation: u = b·hk key heads, r query heads for each of them (h = hk·r), i queries, j keys,
p = max_pos; inside a tile K keys and R = r·(queries of the tile) rows. Tiles of logits are
(u K R): key by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

SPARE = 33  # rows of zeros that a table may be read beyond its end, see `Call.table`


@dataclass(frozen=True)
class Tile:
    """Queries i0…i1 against keys j0…j1; query i0 + n sees the tile's keys up to diagonal + n."""

    i0: int
    i1: int
    j0: int
    j1: int
    diagonal: int

    @property
    def keys(self) -> slice:
        return slice(self.j0, self.j1)


@dataclass
class ForwardRows:
    """What the forward carries for the rows of a tile of queries."""

    L: Tensor  # (u R p+…), table logits; wider than the positions, so that f + 1 always exists
    last: int  # the largest position, P − 1
    m: Tensor  # (u R), about the largest biased logit so far
    total: Tensor  # (u R), Σ exp(s + b − m)
    out: Tensor  # (u R dv), Σ exp(s + b − m) v
    count: Tensor  # (u R), float64, Σ of gates so far
    start: Tensor  # (u R), int32, the key from which on the row is counted; −1: counts on


@dataclass
class BackwardRows:
    """What the backward carries for the rows of a tile of queries."""

    L: Tensor  # (u R p+…)
    dL: Tensor  # (u R p+…)
    last: int
    m: Tensor  # (u R), as the forward left it; finite
    inverse: Tensor  # (u R), 1 / Σ exp(s + b − m); 0 in rows that see no key
    D: Tensor  # (u R), Σ dout·out
    count: Tensor  # (u R), float64, the count at the tile's first key
    lift: Tensor  # (u R), Σ dp over the keys so far
    start: Tensor  # (u R), int32


class Body(Protocol):
    """The elementwise work of a tile. ``a`` is what gates are made of: ``s`` itself or its like."""

    QUERIES: int
    AREA: int
    KEYS: int

    @staticmethod
    def lay_out(flat: Tensor, units: int, keys: int, rows: int) -> Tensor:
        """Memory as a tile of logits (u K R), in the order that the body likes."""

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


@dataclass(frozen=True)
class Call:
    """The tensors of one call, sorted by key head, and its options.

    Args:
        q: (u r i d), unscaled.
        k: (u j d).
        v: (u j dv).
        e: the table (p+… d), or one per head (h p+… d), with ``SPARE`` rows of zeros at the end.
        max_pos: p.
        gate_k: (u j d), or None.
        head_mix: (h h), or None; with it r = 1.
        hidden: where a key may not be attended, (b hk r i j), or None.
        scale: of the logits.
        causal: query i sees keys up to its own place.
        sharpness: of the soft one-hot, 1 / temperature; 0 interpolates.
        heads: h.
        body: who does the elementwise work.
        memory: of the tiles, by name.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    e: Tensor
    max_pos: int
    gate_k: Tensor | None
    head_mix: Tensor | None
    hidden: Tensor | None
    scale: float
    causal: bool
    sharpness: float
    heads: int
    body: Body
    memory: dict[str, Tensor] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[slice, Call]]:
        """The call by parts of the batch, so small that a tile takes all heads of a part."""
        i, j = self.q.shape[2], self.k.shape[1]
        one = self.heads * min(i, self.body.QUERIES) * min(j, self.body.KEYS)
        batches = max(1, self.body.AREA // one)
        key_heads = self.heads // self.q.shape[1]
        for first in range(0, len(self.q) // key_heads, batches):
            units = slice(first * key_heads, (first + batches) * key_heads)
            yield (
                units,
                replace(
                    self,
                    q=self.q[units],
                    k=self.k[units],
                    v=self.v[units],
                    gate_k=None if self.gate_k is None else self.gate_k[units],
                    hidden=None if self.hidden is None else self.hidden[first : first + batches],
                ),
            )

    def query_tiles(self) -> Iterator[tuple[int, int, int]]:
        """Of each tile of queries: i0, i1, and how many keys its last one may see."""
        i, j = self.q.shape[2], self.k.shape[1]
        for i0 in range(0, i, self.body.QUERIES):
            i1 = min(i, i0 + self.body.QUERIES)
            yield i0, i1, max(0, j - i + i1) if self.causal else j

    def key_tiles(self, i0: int, i1: int, seen: int) -> list[Tile]:
        """The tiles of the first ``seen`` keys, from the start to the diagonal."""
        u, r, i, j = *self.q.shape[:3], self.k.shape[1]
        width = self.body.AREA // (u * r * (i1 - i0)) // 64 * 64
        width = min(max(width, 64), self.body.KEYS)
        place = j - i + i0 if self.causal else j
        return [Tile(i0, i1, j0, min(seen, j0 + width), place - j0) for j0 in range(0, seen, width)]

    def table_room(self, rows: Tensor, width: int, name: str) -> Tensor:
        """Room for table logits of the rows (u R …)."""
        u, R = rows.shape[:2]
        return self.memory_for(name, u * R * width).view(u, R, width)

    def room(self, tile: Tile, name: str) -> Tensor:
        """Room for a tile of logits: the same memory for every tile, else the system clears it."""
        units, rows = self.q.shape[0], self.q.shape[1] * (tile.i1 - tile.i0)
        size = units * rows * (tile.j1 - tile.j0)
        return self.body.lay_out(self.memory_for(name, size), units, tile.j1 - tile.j0, rows)

    def memory_for(self, name: str, size: int) -> Tensor:
        if name not in self.memory or len(self.memory[name]) < size:
            self.memory[name] = self.q.new_empty(size)
        return self.memory[name][:size]

    def table(self, positions: int) -> tuple[Tensor, int]:
        """The rows of the table that are reached, and the largest position, P − 1.

        At least one row is added, and as many as it takes to make a row of table logits an odd
        number of cache lines: else the logits of all queries at one position lie in one cache set.
        """
        p = min(positions, self.max_pos)
        lines = -(-(p + 1) // 16) // 2 * 2 + 1
        return self.e[..., : 16 * lines, :], p - 1

    def by_head(self, rows: Tensor) -> Tensor:
        """(u R …) → (b h queries …)."""
        return rows.view(-1, self.heads, rows.shape[1] // self.q.shape[1], rows.shape[-1])

    def mask(self, tile: Tile, *logits: Tensor) -> None:
        """−∞ where a key is masked; keys that stand behind their query are the body's matter."""
        if self.hidden is None:
            return
        b, hk, r = self.hidden.shape[:3]
        hidden = self.hidden[..., tile.i0 : tile.i1, tile.keys].permute(0, 1, 4, 2, 3)
        for s in logits:
            s.view(b, hk, s.shape[1], r, -1).masked_fill_(hidden, -torch.inf)


def rows_of(x: Tensor, i0: int, i1: int) -> Tensor:
    """(u r i …) → the rows of a tile of queries (u R …), a copy."""
    return x[:, :, i0:i1].clone(memory_format=torch.contiguous_format).flatten(1, 2)


def product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """out = x y, whichever way round ``out`` lies in memory."""
    if out.is_contiguous():
        return torch.bmm(x, y, out=out)
    return torch.bmm(y.mT, x.mT, out=out.mT).mT
