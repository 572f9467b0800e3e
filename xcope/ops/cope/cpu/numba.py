"""The elementwise work of a tile, compiled: one pass over the logits, on all cores.

The letters are those of `xcope.ops.cope.reference`, the steps those of `xcope.ops.cope.cpu.walk`,
and `xcope.ops.cope.cpu.eager` does the same in torch operations. A tile lies in memory key by key,
its queries side by side: so the count, which runs over keys, is a sum of whole vectors. A *unit* of
work is some queries of one head. Once all of a unit's rows are saturated it stops counting:
the rest of its keys is plain flash attention.

A count is kept in whole numbers, its floor f and its fraction w as a multiple of 1 / ONE: as
exact however long the row, and the backward, which takes the gates off again, finds the very
positions of the forward. float32, on CPUs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from xcope.ops.cope.cpu.tiles import BackwardRows, ForwardRows
from xcope.ops.tiling import threads
from xcope.ops.tiling.lines import (
    BLOCK,
    below,
    exponentiate,
    hide,
    line,
    mine,
    move_to,
    outgrown,
    top_of,
    unit_of,
)
from xcope.ops.tiling.numba_runtime import (
    Array,
    compiled,
    doubles,
    exp,
    f32,
    floats,
    i32,
    integers,
    kernel,
    prefetch,
    sigmoid,
)
from xcope.ops.tiling.tiles import Tile

QUERIES = 128  # queries in a tile
KEYS = 1024  # keys in a tile, at most
AREA = 2**20  # logits in a tile, all heads together
BY_KEY = True
ONE = i32(2**30)  # a gate of 1; two of them still fit
LONG = 256  # positions: a longer table does not stay in the nearest cache


# -- one key, all rows of a unit -----------------------------------------------------------------


@compiled
def split(count: Array, f: Array, w: Array) -> None:
    for r in range(count.size):
        floor = np.floor(count[r])
        f[r] = i32(floor)
        w[r] = i32((count[r] - floor) * ONE)


@compiled
def join(f: Array, w: Array, count: Array) -> None:
    for r in range(count.size):
        count[r] = np.float64(f[r]) + np.float64(w[r]) / ONE


@compiled
def saturated(f: Array, last: Any) -> bool:
    lowest = f[0]
    for r in range(f.size):
        lowest = f[r] if f[r] < lowest else lowest
    return bool(lowest >= last)


@compiled
def gates(a: Array, g: Array) -> None:
    for r in range(a.size):
        g[r] = sigmoid(a[r])


@compiled
def whole(gate: Any) -> Any:
    """A gate as a multiple of 1 / ONE; where it is NaN, any that does not overflow a count."""
    gate = gate if gate < f32(1) else f32(1)
    return i32(gate * f32(ONE) + f32(0.5))


@compiled
def add_gates(g: Array, f: Array, w: Array) -> None:
    for r in range(f.size):
        count = i32(w[r] + whole(g[r]))
        carry = count >= ONE
        w[r] = i32(count - ONE) if carry else count
        f[r] = i32(f[r] + i32(1)) if carry else f[r]


@compiled
def take_gates(g: Array, f: Array, w: Array) -> None:
    for r in range(f.size):
        count = i32(w[r] - whole(g[r]))
        borrow = count < i32(0)
        w[r] = i32(count + ONE) if borrow else count
        f[r] = i32(f[r] - i32(1)) if borrow else f[r]


@compiled
def locate(f: Array, w: Array, last: Any, width: Any, sharpness: Any, at: Array, u: Array) -> None:
    """Where each row's L[f] lies, and the weight u of L[f + 1]; the position clamped."""
    for r in range(f.size):
        full = f[r] >= last
        at[r] = i32((last if full else f[r]) + i32(r) * width)
        u[r] = f32(0) if full else f32(w[r]) * f32(1 / ONE)
    if sharpness > 0:
        for r in range(f.size):
            soft = sigmoid((f32(2) * u[r] - f32(1)) * sharpness)
            u[r] = f32(0) if f[r] >= last else soft


@compiled
def slopes(f: Array, u: Array, last: Any, sharpness: Any, slope: Array) -> None:
    """du / dp, 0 where p is clamped."""
    for r in range(f.size):
        slope[r] = f32(0) if f[r] >= last else f32(1)
    if sharpness > 0:
        for r in range(f.size):
            slope[r] *= f32(2) * sharpness * u[r] * (f32(1) - u[r])


@compiled
def fetch(table: int, width: int, f: Array, first: int, end: int) -> None:
    """Brings positions f + first … f + end of every row of a long table nearer."""
    for r in range(f.size):
        for ahead in range(first, end, 16):
            prefetch(table + 4 * (r * width + max(0, f[r] + ahead)))


@compiled
def gather(L: Array, at: Array, low: Array, rise: Array) -> None:
    for r in range(at.size):
        where = np.uint32(at[r])
        low[r] = L[where]
        rise[r] = L[np.uint32(where + np.uint32(1))] - L[where]


@compiled
def scatter(dL: Array, at: Array, ds: Array, u: Array) -> None:
    for r in range(at.size):
        where = np.uint32(at[r])
        dL[where] += ds[r] * (f32(1) - u[r])
        dL[np.uint32(where + np.uint32(1))] += ds[r] * u[r]


@compiled
def add_bias(s: Array, low: Array, rise: Array, u: Array, top: Array) -> None:
    for r in range(s.size):
        y = s[r] + low[r] + u[r] * rise[r]
        s[r] = y
        top[r] = y if y > top[r] else top[r]


@compiled
def counted_gradient(
    s: Array, dp: Array, a: Array, low: Array, rise: Array, u: Array, slope: Array, g: Array,
    m: Array, inverse: Array, D: Array, lift: Array, ds: Array, separate: bool,
) -> None:  # fmt: skip
    """s becomes prob, dp the gradient of the logit; ``a`` that of its own gate's logit."""
    for r in range(s.size):
        prob = exp(s[r] + low[r] + u[r] * rise[r] - m[r]) * inverse[r]
        s[r] = prob
        ds[r] = prob * (dp[r] - D[r])
        lift[r] += ds[r] * rise[r] * slope[r]
    if separate:
        for r in range(s.size):
            dp[r] = ds[r]
            a[r] = lift[r] * g[r] * (f32(1) - g[r])
    else:
        for r in range(s.size):
            dp[r] = ds[r] + lift[r] * g[r] * (f32(1) - g[r])


@compiled
def plain_gradient(
    s: Array, dp: Array, shift: Array, inverse: Array, D: Array, total: Array
) -> None:
    """The same in the saturated part, where the bias is in ``shift`` and nothing is lifted."""
    for r in range(s.size):
        prob = exp(s[r] + shift[r]) * inverse[r]
        s[r] = prob
        dp[r] = prob * (dp[r] - D[r])
        total[r] += dp[r]


# -- one unit ------------------------------------------------------------------------------------


@compiled
def forward_unit(
    s: int, a: int, stride: int, keys: int, L: Array, last: Any, m: Array, total: Array,
    out: Array, count: Array, start: Array, j0: int, diagonal: int, sharpness: Any,
) -> None:  # fmt: skip
    """s becomes exp(s + b − m); the rows move on, block by block from the right.

    m is about the largest logit: it is moved only when it must.
    """
    rows = m.size
    counts, work = np.empty((3, rows), np.int32), np.empty((7, rows), np.float32)
    f, w, at = counts[0], counts[1], counts[2]
    g, u, low, rise = work[0], work[1], work[2], work[3]
    plain, shift, top = work[4], work[5], work[6]
    split(count, f, w)
    for r in range(rows):
        plain[r] = L[r, last]

    for end in range(keys, 0, -BLOCK):
        first = max(0, end - BLOCK)
        if start[0] < 0 and saturated(f, last):
            start[:] = j0 + end
        counting = start[0] < 0
        if counting and L.shape[1] > LONG:
            fetch(L.ctypes.data, L.shape[1], f, 0, 2 * BLOCK)
        top[:] = -np.inf
        for t in range(end - 1, first - 1, -1):
            key = line(s, t, stride, rows)
            hide(key, t - diagonal)
            if counting:
                gate = line(a, t, stride, rows)
                hide(gate, t - diagonal)
                gates(gate, g)
                add_gates(g, f, w)
                locate(f, w, last, i32(L.shape[1]), sharpness, at, u)
                gather(L.reshape(-1), at, low, rise)
                add_bias(key, low, rise, u, top)
            else:
                top_of(key, top)
        if not counting:
            top += plain
        if outgrown(m, top):
            move_to(top, s, stride, end, keys, m, total, out)
        for r in range(rows):
            shift[r] = below(f32(0) if counting else plain[r], m[r])
        for t in range(first, end):
            exponentiate(line(s, t, stride, rows), shift, total)
    join(f, w, count)


@compiled
def backward_unit(
    s: int, dp: int, a: int, stride: int, keys: int, L: Array, dL: Array, last: Any, m: Array,
    inverse: Array, D: Array, count: Array, lift: Array, start: Array, j0: int, diagonal: int,
    sharpness: Any,
) -> None:  # fmt: skip
    """s becomes prob, dp the gradient of the logits; the rows move on, from the left."""
    rows, separate = m.size, a != s
    counted = min(keys, max(0, start[0] - j0))
    counts, work = np.empty((3, rows), np.int32), np.empty((7, rows), np.float32)
    f, w, at = counts[0], counts[1], counts[2]
    g, u, low, rise = work[0], work[1], work[2], work[3]
    slope, shift, ds = work[4], work[5], work[6]

    for r in range(rows):
        shift[r] = L[r, last] - m[r]
        ds[r] = f32(0)
    for t in range(counted):
        key = line(s, t, stride, rows)
        hide(key, t - diagonal)
        plain_gradient(key, line(dp, t, stride, rows), shift, inverse, D, ds)
        if separate:
            line(a, t, stride, rows)[:] = f32(0)
    for r in range(rows):
        dL[r, last] += ds[r]

    split(count, f, w)
    for t in range(counted, keys):
        if L.shape[1] > LONG and t % BLOCK == 0:
            fetch(L.ctypes.data, L.shape[1], f, -2 * BLOCK, 1)
            fetch(dL.ctypes.data, L.shape[1], f, -2 * BLOCK, 1)
        key, dkey = line(s, t, stride, rows), line(dp, t, stride, rows)
        gate = line(a, t, stride, rows)
        hide(key, t - diagonal)
        hide(gate, t - diagonal)
        gates(gate, g)
        locate(f, w, last, i32(L.shape[1]), sharpness, at, u)
        slopes(f, u, last, sharpness, slope)
        gather(L.reshape(-1), at, low, rise)
        counted_gradient(
            key, dkey, gate, low, rise, u, slope, g, m, inverse, D, lift, ds, separate
        )  # fmt: skip
        scatter(dL.reshape(-1), at, ds, u)
        take_gates(g, f, w)
    join(f, w, count)


# -- all units, shared out among the threads -----------------------------------------------------


@kernel
def _forward(given: Any) -> None:
    key_heads, keys, rows, queries, size, width, last, j0, diagonal, d = numba.carray(given, 10)
    heads = rows // queries
    sharpness = floats(given[10], (1,))[0]
    L = floats(given[13], (key_heads, rows, width))
    m = floats(given[14], (key_heads, rows))
    total = floats(given[15], (key_heads, rows))
    out = floats(given[16], (key_heads, rows, d))
    count = doubles(given[17], (key_heads, rows))
    start = integers(given[18], (key_heads, rows))
    for task in mine(key_heads * heads * ((queries + size - 1) // size)):
        n, head, lo, hi = unit_of(task, heads, queries, size)
        here = slice(head + lo, head + hi)
        offset = 4 * (n * keys * rows + head + lo)
        forward_unit(
            given[11] + offset, given[12] + offset, rows, keys, L[n, here], i32(last),
            m[n, here], total[n, here], out[n, here], count[n, here], start[n, here],
            j0, diagonal + lo, sharpness,
        )  # fmt: skip


@kernel
def _backward(given: Any) -> None:
    key_heads, keys, rows, queries, size, width, last, j0, diagonal = numba.carray(given, 9)
    heads = rows // queries
    sharpness = floats(given[9], (1,))[0]
    L = floats(given[13], (key_heads, rows, width))
    dL = floats(given[14], (key_heads, rows, width))
    m = floats(given[15], (key_heads, rows))
    inverse = floats(given[16], (key_heads, rows))
    D = floats(given[17], (key_heads, rows))
    count = doubles(given[18], (key_heads, rows))
    lift = floats(given[19], (key_heads, rows))
    start = integers(given[20], (key_heads, rows))
    for task in mine(key_heads * heads * ((queries + size - 1) // size)):
        n, head, lo, hi = unit_of(task, heads, queries, size)
        here = slice(head + lo, head + hi)
        offset = 4 * (n * keys * rows + head + lo)
        backward_unit(
            given[10] + offset, given[11] + offset, given[12] + offset, rows, keys,
            L[n, here], dL[n, here], i32(last), m[n, here], inverse[n, here], D[n, here],
            count[n, here], lift[n, here], start[n, here], j0, diagonal + lo, sharpness,
        )  # fmt: skip


def forward(s: Tensor, a: Tensor, rows: ForwardRows, tile: Tile, sharpness: float) -> None:
    """See `xcope.ops.cope.cpu.tiles.Body`."""
    sharp, (_, d) = torch.tensor([sharpness], dtype=torch.float32), rows.out.shape[1:]
    threads.run(
        _forward,
        [*s.shape, tile.i1 - tile.i0, tile.unit, rows.L.shape[-1], rows.last, tile.j0,
         tile.diagonal, d],
        sharp, s, a, rows.L, rows.m, rows.total, rows.out, rows.count, rows.start,
    )  # fmt: skip


def backward(
    s: Tensor, dp: Tensor, a: Tensor, rows: BackwardRows, tile: Tile, sharpness: float
) -> None:
    """See `xcope.ops.cope.cpu.tiles.Body`."""
    sharp = torch.tensor([sharpness], dtype=torch.float32)
    threads.run(
        _backward,
        [*s.shape, tile.i1 - tile.i0, tile.unit, rows.L.shape[-1], rows.last, tile.j0,
         tile.diagonal],
        sharp, s, dp, a, rows.L, rows.dL, rows.m, rows.inverse, rows.D, rows.count, rows.lift,
        rows.start,
    )  # fmt: skip


__all__ = ["AREA", "BY_KEY", "KEYS", "QUERIES", "backward", "forward"]
