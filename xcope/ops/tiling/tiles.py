"""How attention is cut into tiles: tensors by key head, their tiles, and what a row carries.

Shape notation: u = b·hk key heads, r query heads for each of them (h = hk·r), i queries, j keys;
inside a tile K keys and R = r·(queries of the tile) rows. Tiles of logits are (u K R).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from xcope.ops.windows import tile_bounds, within

QUERIES = 128  # queries in a tile
KEYS = 512  # keys in a tile, at most
NARROW = 128  # of a window, which ends within a tile
AREA = 2**18  # logits in a tile, all heads together


class Tile(NamedTuple):
    """Queries i0 … i1 − 1 against keys j0 … j1 − 1.

    Query i0 + n sees the tile's keys up to diagonal + n. ``keys`` are the same keys as a slice;
    ``width`` is how many there would be if the diagonal cut none off; ``batch0`` is the tile's
    first row of the batch.
    """

    i0: int
    i1: int
    j0: int
    j1: int
    keys: slice
    width: int
    diagonal: int
    batch0: int


@dataclass
class ForwardRows:
    """What the forward carries from tile to tile for each row; y are the biased logits."""

    m: Tensor  # (u R), about the largest y so far
    total: Tensor  # (u R), Σ exp(y − m)
    out: Tensor  # (u R dv), Σ exp(y − m) v


@dataclass
class BackwardRows:
    """What the backward carries from tile to tile for each row."""

    m: Tensor  # (u R), as the forward left it; finite
    inverse: Tensor  # (u R), 1 / Σ exp(y − m); 0 in rows that see no key
    D: Tensor  # (u R), Σ dout·out


@dataclass(frozen=True, kw_only=True)
class Heads:
    """q, k and v sorted by key head, and how they are cut into tiles.

    Args:
        q: (u r i d), unscaled.
        k: (u j d).
        v: (u j dv).
        hidden: where a key may not be attended, (b hk r i j), or None.
        window: see `xcope.ops.windows`, (b 2 i) or (1 2 i), or None.
        scale: of the logits.
        causal: query i sees keys up to its own place.
        heads: h.
        batch0: the first row of the batch, where this is a part of it.
        buffers: of the tiles, by name.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None
    scale: float
    causal: bool
    heads: int
    window: Tensor | None = None
    batch0: int = 0
    buffers: dict[str, Tensor] = field(default_factory=dict)

    BY_KEY_HEAD: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    def parts(self) -> Iterator[tuple[slice, Self]]:
        """Parts of the batch, so small that a tile holds all heads of a part.

        Yields:
            Which key heads a part has, of the u; the part.
        """
        r, i, j = self.q.shape[1], self.q.shape[2], self.k.shape[1]
        hk = self.heads // r
        one = self.heads * min(i, QUERIES) * min(j, KEYS)
        batch, size = len(self.q) // hk, max(1, AREA // max(1, one))
        for first in range(0, batch, size):
            key_heads = slice(first * hk, (first + size) * hk)
            cut: dict[str, Any] = {"batch0": first}
            for name in self.BY_KEY_HEAD:
                whole = getattr(self, name)
                cut[name] = None if whole is None else whole[key_heads]
            cut["hidden"] = None if self.hidden is None else self.hidden[first : first + size]
            if self.window is not None and len(self.window) > 1:
                cut["window"] = self.window[first : first + size]
            yield key_heads, replace(self, **cut)

    def query_tiles(self) -> Iterator[tuple[int, int, list[Tile]]]:
        """The tiles of the part, by their queries.

        Yields:
            i0 and i1; the tiles of these queries, from the first keys to the diagonal.
        """
        (u, r, i, _), j = self.q.shape, self.k.shape[1]
        width = AREA // max(1, u * r * min(i, QUERIES)) // 64 * 64
        width = min(max(width, 64), KEYS if self.window is None else NARROW)
        bounds = [] if self.window is None else tile_bounds(self.window, QUERIES)
        for i0 in range(0, i, QUERIES):
            i1 = min(i, i0 + QUERIES)
            seen, place = (max(0, j - i + i1), j - i + i0) if self.causal else (j, j)
            first, near = bounds[i0 // QUERIES] if bounds else (0, 0)
            tiles = []
            for j0 in range(0, seen, width):
                if first <= j0 and j0 + width <= near:
                    continue
                j1, uncut = min(seen, j0 + width), min(j, j0 + width) - j0
                tiles.append(Tile(i0, i1, j0, j1, slice(j0, j1), uncut, place - j0, self.batch0))
            yield i0, i1, tiles

    def product(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """x yᵀ for each key head, (u K R) from (u K d) and (u R d), in the buffer of this name."""
        u, K, R = len(x), x.shape[1], y.shape[1]
        return torch.bmm(y, x.mT, out=self.buffer(name, u, R, K)).mT

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Memory to be written to: the same for every tile, else the system clears it each time."""
        size = math.prod(shape)
        if name not in self.buffers or len(self.buffers[name]) < size:
            self.buffers[name] = self.q.new_empty(size)
        return self.buffers[name][:size].view(shape)

    def by_head(self, s: Tensor) -> Tensor:
        """A tile of logits (u K R) → (b hk r queries K), the same memory."""
        (u, K, R), r = s.shape, self.q.shape[1]
        hk = self.heads // r
        return s.mT.view(u // hk, hk, r, R // r, K)

    def mask(self, tile: Tile, *logits: Tensor) -> None:
        """Set −∞ where a key is masked or outside of the window.

        Keys that come after their query the body hides.
        """
        queries = slice(tile.i0, tile.i1)
        if self.hidden is not None:
            b, hk, r = self.hidden.shape[:3]
            hidden = self.hidden[..., queries, tile.keys].permute(0, 1, 4, 2, 3)
            for s in logits:
                s.view(b, hk, s.shape[1], r, -1).masked_fill_(hidden, -torch.inf)
        if self.window is not None:
            far = ~within(self.window[..., queries], tile.keys)[:, :, None]
            for s in logits:
                self.by_head(s).masked_fill_(far, -torch.inf)


class KeySums:
    """Sums of products, x y for each key, over all tiles of queries.

    Each tile of keys has its own memory: batched products are fast only where what they add to
    lies in one piece.
    """

    def __init__(self, heads: Heads):
        self.heads = heads
        self.sums: dict[int, Tensor] = {}  # by the tile's first key

    def add(self, tile: Tile, x: Tensor, y: Tensor) -> None:
        """Add x y to the sums of the tile's keys; x (u K R), y (u R d)."""
        (u, keys, _), d = x.shape, y.shape[-1]
        if tile.j0 not in self.sums:
            self.sums[tile.j0] = y.new_zeros(u, tile.width, d)
        sums = self.sums[tile.j0]
        if keys == tile.width:
            sums.baddbmm_(x, y)
        else:
            sums[:, :keys] += torch.bmm(x, y, out=self.heads.buffer("keys", u, keys, d))

    def move_to(self, out: Tensor) -> None:
        """Write the sums into out (u j d) and drop them; keys that no query saw get 0."""
        done = 0
        for j0 in sorted(self.sums):
            sums = self.sums.pop(j0)
            out[:, done:j0].zero_()
            done = j0 + sums.shape[1]
            out[:, j0:done] = sums
        out[:, done:].zero_()


def sorted_by_key_head(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and hidden of `Heads` from (b h i d), (b hk j d), (b hk j dv) and a 4-dim. mask."""
    (b, h, i, d), (_, hk, j, _) = q.shape, k.shape
    hidden = None if mask is None else (~mask).expand(b, h, i, j).view(b, hk, h // hk, i, j)
    q = q.contiguous().view(b * hk, h // hk, i, d)
    return q, k.contiguous().flatten(0, 1), v.contiguous().flatten(0, 1), hidden


def rows_of(x: Tensor, i0: int, i1: int) -> Tensor:
    """The rows of a tile of queries, (u r i …) → (u R …), copied."""
    return x[:, :, i0:i1].clone(memory_format=torch.contiguous_format).flatten(1, 2)


def finish(rows: ForwardRows) -> Tensor:
    """Divide ``out`` by Σ exp(y − m), make ``m`` finite; 1 / Σ exp(y − m), (u R).

    Rows that see no key get 0.
    """
    none = rows.total == 0
    rows.m.masked_fill_(none, 0.0)
    inverse = rows.total.reciprocal_().masked_fill_(none, 0.0)
    rows.out.mul_(inverse[..., None])
    return inverse
