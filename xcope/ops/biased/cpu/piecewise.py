"""A block whose bias is b = slope[s] t + offset[s], t = warp[δ] · shrink; compiled.

A row stays in its segment s for many keys: the segment's bounds and its line are kept with the
row, and only rows that stray out of their bounds look for another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcope.ops.biased.cpu.by_distance import (
    add_bias,
    biased_gradient,
    first_cell,
    locate,
    look_up,
    spread,
    spread_along,
)
from xcope.ops.biased.cpu.unit import Block, Sums, Unit, Work
from xcope.ops.tiling.lines import hide, line
from xcope.ops.tiling.numba_runtime import Array, compiled, f32, inlined


@inlined
def multiply(entry: Array, shrink: Array, t: Array) -> None:
    for r in range(t.size):
        t[r] = entry[r] * shrink[r]


@inlined
def strayed(t: Array, low: Array, high: Array) -> bool:
    out = False
    for r in range(t.size):
        out |= (t[r] < low[r]) | (t[r] >= high[r])
    return out


@inlined
def straight(t: Array, slope: Array, offset: Array, bias: Array) -> None:
    for r in range(t.size):
        bias[r] = slope[r] * t[r] + offset[r]


@compiled
def segment_of(t: Any, knots: Array) -> int:
    """How many knots are below or at t."""
    low, high = 0, knots.size
    while low < high:
        middle = (low + high) // 2
        if knots[middle] <= t:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def settle(u: Unit, w: Work, sums: Sums) -> None:
    """Moves the rows that strayed to their segments, and settles what they owe the old ones."""
    for r in range(w.t.size):
        if w.t[r] < w.low[r] or w.t[r] >= w.high[r]:
            if sums.wanted:
                pay(w, r, sums)
            s = segment_of(w.t[r], u.knots)
            w.segment[r] = s
            w.low[r] = u.knots[s - 1] if s > 0 else f32(-np.inf)
            w.high[r] = u.knots[s] if s < u.knots.size else f32(np.inf)
            w.slope[r], w.offset[r] = u.slope[s], u.offset[s]


@compiled
def pay(w: Work, r: int, sums: Sums) -> None:
    sums.slope[w.segment[r]] += w.ds_t[r]
    sums.offset[w.segment[r]] += w.ds[r]
    w.ds_t[r] = f32(0)
    w.ds[r] = f32(0)


@compiled
def pay_all(w: Work, sums: Sums) -> None:
    """After the last block."""
    for r in range(w.t.size):
        pay(w, r, sums)
        sums.shrink[r] += w.d_shrink[r]


@inlined
def gather(
    ds: Array, t: Array, slope: Array, entry: Array, shrink: Array, ds_sum: Array, ds_t: Array,
    d_shrink: Array, along: Array,
) -> None:  # fmt: skip
    """The gradients of offset, slope and shrink; ``along`` becomes that of the entries."""
    for r in range(ds.size):
        ds_sum[r] += ds[r]
        ds_t[r] += ds[r] * t[r]
        dt = ds[r] * slope[r]
        d_shrink[r] += dt * entry[r]
        along[r] = dt * shrink[r]


@compiled
def add(block: Block, u: Unit, w: Work, none: Sums) -> None:
    """Biases the logits and notes the largest."""
    table, q_pos, at, entry, top, rows = u.table, u.q_pos, w.at, w.entry, w.top, block.rows
    t_of, low, high, slope, offset, bias = w.t, w.low, w.high, w.slope, w.offset, w.bias
    shrink = w.shrink
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, rows)
        hide(key, t - block.diagonal)
        place = u.k_pos[t - block.free]
        if u.consecutive:
            cell = first_cell(q_pos[0] - place, u.last)
            multiply(table[cell : cell + rows], shrink, t_of)
        else:
            locate(q_pos, place, u.last, at)
            look_up(table, at, entry)
            multiply(entry, shrink, t_of)
        if strayed(t_of, low, high):
            settle(u, w, none)
        straight(t_of, slope, offset, bias)
        add_bias(key, bias, top)


@compiled
def back(block: Block, u: Unit, w: Work, sums: Sums) -> None:
    """Turns logits into prob and dp into ds, and gathers the gradients of the vectors."""
    table, q_pos, at, entry, rows = u.table, u.q_pos, w.at, w.entry, block.rows
    t_of, low, high, slope, offset, bias = w.t, w.low, w.high, w.slope, w.offset, w.bias
    shrink, shift, inverse, D, dtable = w.shrink, w.shift, w.inverse, w.D, sums.table
    ds, ds_t, d_shrink = w.ds, w.ds_t, w.d_shrink
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, rows)
        dkey = line(block.dp, t, block.stride, rows)
        hide(key, t - block.diagonal)
        place = u.k_pos[t - block.free]
        cell = 0
        if u.consecutive:
            cell = first_cell(q_pos[0] - place, u.last)
            multiply(table[cell : cell + rows], shrink, t_of)
        else:
            locate(q_pos, place, u.last, at)
            look_up(table, at, entry)
            multiply(entry, shrink, t_of)
        if strayed(t_of, low, high):
            settle(u, w, sums)
        straight(t_of, slope, offset, bias)
        biased_gradient(key, dkey, bias, shift, inverse, D)
        if sums.wanted and u.consecutive:
            gather(dkey, t_of, slope, table[cell : cell + rows], shrink, ds, ds_t, d_shrink, bias)
            spread_along(bias, dtable[cell : cell + rows])
        elif sums.wanted:
            gather(dkey, t_of, slope, entry, shrink, ds, ds_t, d_shrink, bias)
            spread(bias, at, dtable)
