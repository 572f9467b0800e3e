"""A bias as a unit of compiled work sees it: the vectors of some rows and keys of one head."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from xcope.ops.tiling.numba_runtime import Array, compiled, floats, integers, pointer

FREE, SEPARABLE, BY_DISTANCE, PIECEWISE, FAR = range(5)
"""What biases some keys: nothing, one of the forms, the last entry of a table alone."""

ROWS = 256  # queries of a unit, at most
MARGIN = ROWS  # how much wider a table is than its distances, at either end

VECTORS = ("row", "key", "table", "q_pos", "k_pos", "shrink", "knots", "slope", "offset")

PACKED = np.dtype(
    [(name, np.int64) for name in ("form", "heads", "consecutive", "last", "wanted", "all_heads")]
    # of each vector: address (0: there is none), length, and how many there are
    + [(part + name, np.int64) for name in VECTORS for part in ("", "n_", "many_")]
    # addresses of their gradients, each (chunks, batch · heads, length)
    + [("d_" + name, np.int64) for name in VECTORS]
)


class Unit(NamedTuple):
    """The vectors of one unit; keys are those of the tile that have a place."""

    form: int
    consecutive: bool
    last: int  # the largest distance, D − 1
    row: Array  # (R)
    key: Array  # (K)
    table: Array  # (MARGIN + D + MARGIN); ``warp`` of a piecewise bias
    q_pos: Array  # (R), int32
    k_pos: Array  # (K), int32
    shrink: Array  # (R)
    knots: Array
    slope: Array
    offset: Array


class Sums(NamedTuple):
    """Gradients of these vectors, as far as the unit has gathered them."""

    wanted: bool
    row: Array
    key: Array
    table: Array
    shrink: Array
    slope: Array
    offset: Array


class Block(NamedTuple):
    """Some keys of a tile, all biased by one form.

    Passing many arrays to a function takes about as long as a line does, so functions that are
    given a whole `Unit` do a block.
    """

    form: int
    s: int  # where the unit's logits lie
    dp: int
    stride: int
    rows: int
    first: int
    end: int
    free: int  # keys of the tile before the first that has a place
    diagonal: int


class Work(NamedTuple):
    """What a unit notes as it goes from block to block, a number for each row.

    All in one piece of memory, of a width known beforehand: so the compiler sees that no two of
    them overlap, and makes vectors of loops over many of them.
    """

    at: Array  # int32, where in the table
    segment: Array  # int32, that t lies in,
    low: Array  # its bounds
    high: Array
    slope: Array  # and its line
    offset: Array
    entry: Array  # of the table
    t: Array
    bias: Array
    shrink: Array
    d_shrink: Array
    ds: Array  # Σ ds of the segment, or of far keys
    ds_t: Array  # Σ ds t of the segment
    row: Array
    shift: Array  # what is added to all logits of a block in the end: −m, and what is constant
    top: Array  # the largest logit of a block
    inverse: Array
    D: Array


@compiled
def work_of(u: Unit, rows: int) -> Work:
    whole, work = np.zeros((2, ROWS), np.int32), np.zeros((16, ROWS), np.float32)
    work[0] = np.inf  # every row has strayed
    work[1] = -np.inf
    for r in range(u.shrink.size):
        work[7, r] = u.shrink[r]
    for r in range(u.row.size):
        work[11, r] = u.row[r]
    return Work(
        whole[0, :rows], whole[1, :rows],
        work[0, :rows], work[1, :rows], work[2, :rows], work[3, :rows],
        work[4, :rows], work[5, :rows], work[6, :rows], work[7, :rows],
        work[8, :rows], work[9, :rows], work[10, :rows], work[11, :rows],
        work[12, :rows], work[13, :rows], work[14, :rows], work[15, :rows],
    )  # fmt: skip


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
    """Of rows lo … of a head, counted through the batch, and placed keys first …"""
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
    """Their gradients; ``chunk`` numbers the head's units in a tile of queries."""
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
