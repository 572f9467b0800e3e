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
from torch import Tensor

from xcope.ops.biased.cpu import by_distance, piecewise, separable
from xcope.ops.biased.cpu.packed import Bias
from xcope.ops.biased.cpu.unit import (
    BY_DISTANCE,
    FAR,
    FREE,
    MARGIN,
    PIECEWISE,
    Block,
    Sums,
    Unit,
    packed_at,
    sums_at,
    unit_at,
    work_of,
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
    kernel,
)
from xcope.ops.tiling.tiles import BackwardRows, ForwardRows, Heads, Tile

QUERIES = 128  # at most `xcope.ops.biased.cpu.unit.ROWS`
KEYS = 1024
AREA = 2**20
BY_KEY = True

# -- one unit ------------------------------------------------------------------------------------


@compiled
def form_of(u: Unit, first: int, end: int) -> int:
    """What biases keys first … end, counted from the first that has a place."""
    if first < 0:
        return FREE
    if u.form == BY_DISTANCE and by_distance.is_far(u, first, end):
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
            by_distance.add(block, u, w)
        elif form == PIECEWISE:
            piecewise.add(block, u, w, none)
        else:
            separable.add(block, u, w)
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
            by_distance.back(block, u, w, sums)
        elif form == PIECEWISE:
            piecewise.back(block, u, w, sums)
        else:
            separable.back(block, u, w, sums)
        first = end
    if sums.wanted and u.form == PIECEWISE:
        piecewise.pay_all(w, sums)
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
    """What both kernels are given first."""
    key_heads, keys, rows = s.shape
    queries = tile.i1 - tile.i0
    size = threads.unit_size(queries, key_heads * rows)
    free = min(max(0, bias.free - tile.j0), keys)
    first = max(0, tile.j0 - bias.free)
    place = [tile.i0, tile.diagonal, tile.batch0 * bias.heads, first, free]
    return [key_heads, rows // queries, queries, size, keys, *place]


def forward(s: Tensor, rows: ForwardRows, tile: Tile, call: Heads, bias: Bias) -> None:
    """See `xcope.ops.biased.cpu.walk.Body`."""
    sizes = [*_sizes(s, tile, bias), rows.out.shape[-1], bias.packed.ctypes.data]
    threads.run(_forward, sizes, s, rows.m, rows.total, rows.out)


def backward(
    s: Tensor, dp: Tensor, rows: BackwardRows, tile: Tile, call: Heads, bias: Bias
) -> None:
    """See `xcope.ops.biased.cpu.walk.Body`."""
    sizes = [*_sizes(s, tile, bias), bias.packed.ctypes.data]
    threads.run(_backward, sizes, s, dp, rows.m, rows.inverse, rows.D)


__all__ = ["AREA", "BY_KEY", "KEYS", "QUERIES", "Bias", "backward", "forward"]
