"""The elementwise work of a tile, compiled: one pass over the logits, on all cores.

The steps are those of `xcope.ops.biased.cpu.walk`; `xcope.ops.biased.cpu.eager` does the same in
torch operations. float32, on CPUs; see `xcope.ops.tiling.lines` for how a tile lies and is shared
out.

Gradients of the vectors are gathered by each unit in memory of its own, and added up at the end:
in the same order whatever the threads do.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from xcope.ops.biased.cpu.numba_forms import (
    BY_DISTANCE,
    FAR,
    FREE,
    MARGIN,
    PIECEWISE,
    ROWS,
    SEPARABLE,
    Block,
    Sums,
    Unit,
    add_by_distance,
    add_piecewise,
    add_separable,
    back_by_distance,
    back_piecewise,
    back_separable,
    is_far,
    pay_all,
    work_of,
)
from xcope.ops.biased.terms import (
    OF_KEYS,
    WITHOUT_GRADIENT,
    ByDistance,
    Piecewise,
    Separable,
    Terms,
)
from xcope.ops.tiling import threads
from xcope.ops.tiling.lines import (
    BLOCK,
    below,
    exponentiate,
    line,
    mine,
    move_to,
    outgrown,
    sum_of,
    unit_of,
)
from xcope.ops.tiling.numba_runtime import (
    Array,
    compiled,
    f32,
    floats,
    integers,
    kernel,
    pointer,
)
from xcope.ops.tiling.tiles import SMALLEST, BackwardRows, ForwardRows, Heads, Tile

QUERIES = 128  # at most `xcope.ops.biased.cpu.numba_forms.ROWS`
KEYS = 1024
AREA = 2**20
BY_KEY = True

# -- the vectors of a bias in memory -----------------------------------------------------------

VECTORS = ("row", "key", "table", "q_pos", "k_pos", "shrink", "knots", "slope", "offset")

PACKED = np.dtype(
    [(name, np.int64) for name in ("form", "heads", "consecutive", "last", "wanted", "all_heads")]
    # of each vector: address (0: there is none), length, and how many there are
    + [(part + name, np.int64) for name in VECTORS for part in ("", "n_", "many_")]
    # addresses of their gradients, each (chunks, batch · heads, length)
    + [("d_" + name, np.int64) for name in VECTORS]
)

NUMBERS = {type(None): FREE, Separable: SEPARABLE, ByDistance: BY_DISTANCE, Piecewise: PIECEWISE}


class Bias:
    """Addresses and sizes of a bias' vectors; arguments as of `xcope.ops.biased.cpu.eager.Bias`."""

    def __init__(
        self, terms: Terms | None, size: tuple[int, int, int, int], differentiated: bool = False
    ):
        b, h, _, j = size
        self.terms, self.heads, self.free = terms, h, j
        self.vectors: dict[str, Tensor] = {}  # as kernels read them
        self.sums: dict[str, Tensor] = {}  # their gradients
        self.packed = np.zeros(1, PACKED)
        packed = self.packed[0]
        packed["form"], packed["heads"], packed["all_heads"] = NUMBERS[type(terms)], h, b * h
        packed["wanted"] = differentiated
        if terms is None:
            return
        vectors = dict(terms.__dict__)
        if not isinstance(terms, Separable):
            table = vectors.pop("warp") if isinstance(terms, Piecewise) else terms.table
            table = table.view(-1, table.shape[-1])
            before, after = (end.expand(-1, MARGIN) for end in (table[:, :1], table[:, -1:]))
            vectors["table"] = torch.cat([before, table, after], dim=1)
            packed["last"], packed["consecutive"] = table.shape[-1] - 1, True
            for name in ("q_pos", "k_pos"):
                packed["consecutive"] &= bool((vectors[name].diff(dim=-1) == 1).all())
                vectors[name] = vectors[name].clamp(-(2**29), 2**29).int()
        chunks = 1 if torch.get_num_threads() <= h else ROWS // SMALLEST
        for name, t in vectors.items():
            length = t.shape[-1]
            self.vectors[name] = t.contiguous()
            packed[name], packed["n_" + name] = self.vectors[name].data_ptr(), length
            packed["many_" + name] = t.numel() // length if t.numel() else 1
            if name in OF_KEYS:
                self.free = j - length
            if differentiated and name not in WITHOUT_GRADIENT:
                self.sums[name] = torch.zeros(chunks, b, h, length, dtype=torch.float32)
                packed["d_" + name] = self.sums[name].data_ptr()

    def gradients(self) -> dict[str, Tensor]:
        """See `xcope.ops.biased.cpu.eager.Bias`."""
        found = {}
        for name, by_chunk in self.sums.items():
            grad, vector = by_chunk.sum(0), name
            if name == "table":
                before, grad, after = grad.tensor_split([MARGIN, grad.shape[-1] - MARGIN], dim=-1)
                grad[..., 0] += before.sum(-1)
                grad[..., -1] += after.sum(-1)
                vector = "warp" if isinstance(self.terms, Piecewise) else name
            if vector in ("warp", "shrink"):  # which all heads share
                grad = grad.sum(1)
            of_rows = getattr(self.terms, vector).ndim == grad.ndim
            found[vector] = grad if of_rows else grad.sum(0)
        return found


@compiled
def packed_at(address: int) -> Any:
    return numba.carray(pointer(address), (1,), dtype=PACKED)[0]


@compiled
def _piece(address: int, length: int, many: int, which: int, first: int, size: int) -> Array:
    if address == 0:
        return floats(address, (0,))
    return floats(address + 4 * (which % many * length + first), (size,))


@compiled
def _places(address: int, length: int, many: int, which: int, first: int, size: int) -> Array:
    if address == 0:
        return integers(address, (0,))
    return integers(address + 4 * (which % many * length + first), (size,))


@compiled
def unit_at(p: Any, head: int, lo: int, rows: int, first: int, keys: int) -> Unit:
    """The vectors of rows lo … of a head, counted through the batch, and placed keys first …"""
    batch = head // p.heads
    return Unit(
        p.form,
        p.consecutive != 0,
        p.last,
        _piece(p.row, p.n_row, p.many_row, head, lo, rows),
        _piece(p.key, p.n_key, p.many_key, head, first, keys),
        _piece(p.table, p.n_table, p.many_table, head, 0, p.n_table),
        _places(p.q_pos, p.n_q_pos, p.many_q_pos, batch, lo, rows),
        _places(p.k_pos, p.n_k_pos, p.many_k_pos, batch, first, keys),
        _piece(p.shrink, p.n_shrink, p.many_shrink, batch, lo, rows),
        _piece(p.knots, p.n_knots, p.many_knots, head, 0, p.n_knots),
        _piece(p.slope, p.n_slope, p.many_slope, head, 0, p.n_slope),
        _piece(p.offset, p.n_offset, p.many_offset, head, 0, p.n_offset),
    )


@compiled
def sums_at(p: Any, head: int, chunk: int, lo: int, rows: int, first: int, keys: int) -> Sums:
    """The gradients of these vectors; ``chunk`` numbers the head's units in a tile of queries."""
    which, many = chunk * p.all_heads + head, 2**62
    return Sums(
        p.wanted != 0,
        _piece(p.d_row, p.n_row, many, head, lo, rows),
        _piece(p.d_key, p.n_key, many, which, first, keys),
        _piece(p.d_table, p.n_table, many, which, 0, p.n_table),
        _piece(p.d_shrink, p.n_shrink, many, head, lo, rows),
        _piece(p.d_slope, p.n_slope, many, which, 0, p.n_slope),
        _piece(p.d_offset, p.n_offset, many, which, 0, p.n_offset),
    )


# -- one unit ------------------------------------------------------------------------------------


@compiled
def form_of(u: Unit, first: int, end: int) -> int:
    """What biases keys first … end, counted from the first that has a place."""
    if first < 0:
        return FREE
    if u.form == BY_DISTANCE and is_far(u, first, end):
        return FAR
    return u.form


@compiled
def constant_of(u: Unit, form: int) -> Any:
    """What all keys of a block are biased by, if it is the same."""
    return u.table[MARGIN + u.last] if form == FAR else f32(0)


@compiled
def forward_unit(
    s: int, stride: int, keys: int, free: int, u: Unit, none: Sums, m: Array, total: Array,
    out: Array, diagonal: int,
) -> None:  # fmt: skip
    """s becomes exp(s + b − m); the rows move on, block by block from the right.

    m is about the largest logit: it is moved only when it must.
    """
    rows, w = m.size, work_of(u, m.size)
    top, shift = w.top, w.shift
    end = keys
    while end > 0:
        first = max(0, end - BLOCK)
        if first < free < end:
            first = free
        form = form_of(u, first - free, end - free)
        block = Block(form, s, s, stride, rows, first, end, free, diagonal)
        top[:] = -np.inf
        if form == BY_DISTANCE:
            add_by_distance(block, u, w)
        elif form == PIECEWISE:
            add_piecewise(block, u, w, none)
        else:
            add_separable(block, u, w)
        constant = constant_of(u, form)
        top += constant
        if outgrown(m, top):
            move_to(top, s, stride, end, keys, m, total, out)
        for r in range(rows):
            shift[r] = below(constant, m[r])
        for t in range(first, end):
            exponentiate(line(s, t, stride, rows), shift, total)
        end = first


@compiled
def backward_unit(
    s: int, dp: int, stride: int, keys: int, free: int, u: Unit, sums: Sums, m: Array,
    inverse: Array, D: Array, diagonal: int,
) -> None:  # fmt: skip
    """s becomes prob, dp the gradient of the logits."""
    rows, w = m.size, work_of(u, m.size)
    for r in range(rows):
        w.inverse[r], w.D[r] = inverse[r], D[r]
    first = 0
    while first < keys:
        end = min(keys, first + BLOCK)
        if first < free < end:
            end = free
        form = form_of(u, first - free, end - free)
        block = Block(form, s, dp, stride, rows, first, end, free, diagonal)
        constant = constant_of(u, form)
        for r in range(rows):
            w.shift[r] = constant - m[r]
        if form == BY_DISTANCE:
            back_by_distance(block, u, w, sums)
        elif form == PIECEWISE:
            back_piecewise(block, u, w, sums)
        else:
            back_separable(block, u, w, sums)
        first = end
    if sums.wanted and u.form == PIECEWISE:
        pay_all(w, sums)
    if sums.wanted and u.form == BY_DISTANCE:
        sums.table[MARGIN + u.last] += sum_of(w.ds)


# -- all units, shared out among the threads -----------------------------------------------------


@kernel
def _forward(given: Any) -> None:
    key_heads, heads, queries, size, keys, i0, diagonal, head0, first, free = numba.carray(
        given, 10
    )
    rows, d = heads * queries, given[10]
    packed = packed_at(given[11])
    m = floats(given[13], (key_heads, rows))
    total = floats(given[14], (key_heads, rows))
    out = floats(given[15], (key_heads, rows, d))
    for task in mine(key_heads * heads * ((queries + size - 1) // size)):
        n, row, lo, hi = unit_of(task, heads, queries, size)
        here, head = slice(row + lo, row + hi), head0 + n * heads + row // queries
        u = unit_at(packed, head, i0 + lo, hi - lo, first, keys - free)
        sums = sums_at(packed, head, 0, i0 + lo, hi - lo, first, keys - free)
        forward_unit(
            given[12] + 4 * (n * keys * rows + row + lo), rows, keys, free, u, sums,
            m[n, here], total[n, here], out[n, here], diagonal + lo,
        )  # fmt: skip


@kernel
def _backward(given: Any) -> None:
    key_heads, heads, queries, size, keys, i0, diagonal, head0, first, free = numba.carray(
        given, 10
    )
    rows = heads * queries
    packed = packed_at(given[10])
    m = floats(given[13], (key_heads, rows))
    inverse = floats(given[14], (key_heads, rows))
    D = floats(given[15], (key_heads, rows))
    for task in mine(key_heads * heads * ((queries + size - 1) // size)):
        n, row, lo, hi = unit_of(task, heads, queries, size)
        here, head = slice(row + lo, row + hi), head0 + n * heads + row // queries
        offset = 4 * (n * keys * rows + row + lo)
        u = unit_at(packed, head, i0 + lo, hi - lo, first, keys - free)
        sums = sums_at(packed, head, lo // size, i0 + lo, hi - lo, first, keys - free)
        backward_unit(
            given[11] + offset, given[12] + offset, rows, keys, free, u, sums,
            m[n, here], inverse[n, here], D[n, here], diagonal + lo,
        )  # fmt: skip


# -- from tensors --------------------------------------------------------------------------------


def _sizes(s: Tensor, tile: Tile, bias: Bias) -> list[int]:
    """The numbers that both kernels take first."""
    key_heads, keys, rows = s.shape
    queries = tile.i1 - tile.i0
    free = min(max(0, bias.free - tile.j0), keys)
    first = max(0, tile.j0 - bias.free)
    place = [tile.i0, tile.diagonal, tile.batch0 * bias.heads, first, free]
    return [key_heads, rows // queries, queries, tile.unit, keys, *place]


def forward(s: Tensor, rows: ForwardRows, tile: Tile, heads: Heads, bias: Bias) -> None:
    """See `xcope.ops.biased.cpu.walk.Body`."""
    numbers = [*_sizes(s, tile, bias), rows.out.shape[-1], bias.packed.ctypes.data]
    threads.run(_forward, numbers, s, rows.m, rows.total, rows.out)


def backward(
    s: Tensor, dp: Tensor, rows: BackwardRows, tile: Tile, heads: Heads, bias: Bias
) -> None:
    """See `xcope.ops.biased.cpu.walk.Body`."""
    numbers = [*_sizes(s, tile, bias), bias.packed.ctypes.data]
    threads.run(_backward, numbers, s, dp, rows.m, rows.inverse, rows.D)


__all__ = ["AREA", "BY_KEY", "KEYS", "QUERIES", "Bias", "backward", "forward"]
