"""How attention is cut into tiles: the tensors of a call, their tiles, and what a row carries.

Shape notation: u = b·hk key heads, r query heads for each of them (h = hk·r), i queries, j keys;
inside a tile K keys and R = r·(queries of the tile) rows. Tiles of logits are (u K R): key by key.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Protocol, Self

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tile:
    """Queries i0…i1 against keys j0…j1; query i0 + n sees the tile's keys up to diagonal + n.

    The tile's first row of the batch is ``batch0``.
    """

    i0: int
    i1: int
    j0: int
    j1: int
    diagonal: int
    batch0: int = 0

    @property
    def keys(self) -> slice:
        return slice(self.j0, self.j1)


@dataclass
class ForwardRows:
    """What the forward carries for the rows of a tile of queries; y are the biased logits."""

    m: Tensor  # (u R), about the largest y so far
    total: Tensor  # (u R), Σ exp(y − m)
    out: Tensor  # (u R dv), Σ exp(y − m) v


@dataclass
class BackwardRows:
    """What the backward carries for the rows of a tile of queries."""

    m: Tensor  # (u R), as the forward left it; finite
    inverse: Tensor  # (u R), 1 / Σ exp(y − m); 0 in rows that see no key
    D: Tensor  # (u R), Σ dout·out


class Sizes(Protocol):
    """The part of a body that says how large its tiles are and how they lie in memory."""

    QUERIES: int  # queries in a tile
    AREA: int  # logits in a tile, all heads together
    KEYS: int  # keys in a tile, at most

    @staticmethod
    def lay_out(flat: Tensor, units: int, keys: int, rows: int) -> Tensor:
        """Memory as a tile of logits (u K R), in the order that the body likes."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """q, k and v sorted by key head, and how they are cut.

    Args:
        q: (u r i d), unscaled.
        k: (u j d).
        v: (u j dv).
        hidden: where a key may not be attended, (b hk r i j), or None.
        scale: of the logits.
        causal: query i sees keys up to its own place.
        heads: h.
        sizes: of the tiles; the body.
        batch0: the first row of the batch, where this is a part of it.
        memory: of the tiles, by name.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None
    scale: float
    causal: bool
    heads: int
    sizes: Sizes
    batch0: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def key_heads(self) -> int:
        return self.heads // self.q.shape[1]

    def parts(self) -> Iterator[tuple[slice, Self]]:
        """The call by parts of the batch, so small that a tile takes all heads of a part."""
        i, j = self.q.shape[2], self.k.shape[1]
        one = self.heads * min(i, self.sizes.QUERIES) * min(j, self.sizes.KEYS)
        batches = max(1, self.sizes.AREA // max(1, one))
        for first in range(0, len(self.q) // self.key_heads, batches):
            units = slice(first * self.key_heads, (first + batches) * self.key_heads)
            yield units, self.of(units, slice(first, first + batches))

    def of(self, units: slice, batch: slice) -> Self:
        """The part of the call that these units, rows ``batch`` of the batch, are."""
        hidden = None if self.hidden is None else self.hidden[batch]
        q, k, v = self.q[units], self.k[units], self.v[units]
        return replace(self, q=q, k=k, v=v, hidden=hidden, batch0=batch.start)

    def query_tiles(self) -> Iterator[tuple[int, int, int]]:
        """Of each tile of queries: i0, i1, and how many keys its last one may see."""
        i, j = self.q.shape[2], self.k.shape[1]
        for i0 in range(0, i, self.sizes.QUERIES):
            i1 = min(i, i0 + self.sizes.QUERIES)
            yield i0, i1, max(0, j - i + i1) if self.causal else j

    def key_tiles(self, i0: int, i1: int, seen: int) -> list[Tile]:
        """The tiles of the first ``seen`` keys, from the start to the diagonal."""
        i, j = self.q.shape[2], self.k.shape[1]
        width, place = self.width, j - i + i0 if self.causal else j
        return [
            Tile(i0, i1, j0, min(seen, j0 + width), place - j0, self.batch0)
            for j0 in range(0, seen, width)
        ]

    @property
    def width(self) -> int:
        """Keys of a tile, but for the last ones."""
        u, r, i = self.q.shape[:3]
        width = self.sizes.AREA // max(1, u * r * min(i, self.sizes.QUERIES)) // 64 * 64
        return min(max(width, 64), self.sizes.KEYS)

    def room(self, tile: Tile, name: str) -> Tensor:
        """Room for a tile of logits: the same memory for every tile, else the system clears it."""
        units, rows = self.q.shape[0], self.q.shape[1] * (tile.i1 - tile.i0)
        size = units * rows * (tile.j1 - tile.j0)
        return self.sizes.lay_out(self.memory_for(name, size), units, tile.j1 - tile.j0, rows)

    def memory_for(self, name: str, size: int) -> Tensor:
        if name not in self.memory or len(self.memory[name]) < size:
            self.memory[name] = self.q.new_empty(size)
        return self.memory[name][:size]

    def by_head(self, s: Tensor) -> Tensor:
        """A tile of logits (u K R) → (b hk r queries K), the same memory."""
        (u, K, R), r, hk = s.shape, self.q.shape[1], self.key_heads
        return s.mT.view(u // hk, hk, r, R // r, K)

    def mask(self, tile: Tile, *logits: Tensor) -> None:
        """−∞ where a key is masked; keys that stand behind their query are the body's matter."""
        if self.hidden is None:
            return
        b, hk, r = self.hidden.shape[:3]
        hidden = self.hidden[..., tile.i0 : tile.i1, tile.keys].permute(0, 1, 4, 2, 3)
        for s in logits:
            s.view(b, hk, s.shape[1], r, -1).masked_fill_(hidden, -torch.inf)


class KeySums:
    """Sums of products, x y for each key, over all tiles of queries.

    Each tile of keys has its own memory: batched products are fast only where what they add to
    lies in one piece.
    """

    def __init__(self, call: Heads):
        self.call = call
        self.sums: dict[int, Tensor] = {}

    def add(self, tile: Tile, x: Tensor, y: Tensor) -> None:
        """x (u K R), y (u R d)."""
        call, (u, keys, _), d = self.call, x.shape, y.shape[-1]
        if tile.j0 not in self.sums:
            whole = min(call.width, call.k.shape[1] - tile.j0)
            self.sums[tile.j0] = y.new_zeros(u, whole, d)
        sums = self.sums[tile.j0]
        if keys == sums.shape[1]:
            sums.baddbmm_(x, y)
        else:
            room = call.memory_for("keys", u * keys * d).view(u, keys, d)
            sums[:, :keys] += torch.bmm(x, y, out=room)

    def move_to(self, out: Tensor) -> None:
        """Into out (u j d), piece by piece; keys that met no query get 0."""
        for j0 in range(0, out.shape[1], self.call.width):
            place = out[:, j0 : j0 + self.call.width]
            if j0 in self.sums:
                place.copy_(self.sums.pop(j0))
            else:
                place.zero_()


def sorted_by_key_head(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and hidden of `Heads` from (b h i d), (b hk j d), (b hk j dv) and a 4-dim. mask."""
    (b, h, i, d), (_, hk, j, _) = q.shape, k.shape
    hidden = None if mask is None else (~mask).expand(b, h, i, j).view(b, hk, h // hk, i, j)
    q = q.contiguous().view(b * hk, h // hk, i, d)
    return q, by_key_head(k), by_key_head(v), hidden


def by_key_head(t: Tensor) -> Tensor:
    """(b hk j d) → (u j d)."""
    return t.contiguous().flatten(0, 1)


def rows_of(x: Tensor, i0: int, i1: int) -> Tensor:
    """(u r i …) → the rows of a tile of queries (u R …), a copy."""
    return x[:, :, i0:i1].clone(memory_format=torch.contiguous_format).flatten(1, 2)


def product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """out = x y, whichever way round ``out`` lies in memory."""
    if out.is_contiguous():
        return torch.bmm(x, y, out=out)
    return torch.bmm(y.mT, x.mT, out=out.mT).mT


def finish(rows: ForwardRows) -> Tensor:
    """Turns ``out`` into the rows' results and ``m`` finite; 1 / Σ exp(y − m).

    A row that sees no key becomes zero.
    """
    none = rows.total == 0
    rows.m.masked_fill_(none, 0.0)
    inverse = rows.total.reciprocal_().masked_fill_(none, 0.0)
    rows.out.mul_(inverse[..., None])
    return inverse


# -- whether there are compiled bodies -----------------------------------------------------------


def compiled_or_none(module: str, what: str) -> ModuleType | None:
    """A body compiled by numba, or None where it cannot be had; says so."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        log.info("%s runs without compiled tiles, several times slower: %s", what, error)
        return None
