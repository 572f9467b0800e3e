"""A block whose bias is b = table[δ]; compiled.

Distances of rows whose places are consecutive lie side by side in the table, so that a line's
entries are a piece of it, as they stand; in its margins the outermost entries are repeated, so
that the piece needs no clamp. Other places are looked up one by one.
"""

from __future__ import annotations

import numpy as np

from xcope.ops.biased.cpu.unit import MARGIN, Block, Sums, Unit, Work
from xcope.ops.tiling.lines import hide, line
from xcope.ops.tiling.numba_runtime import Array, compiled, exp, i32, inlined


@compiled
def is_far(u: Unit, first: int, end: int) -> bool:
    """Whether the keys first … end are all past the end of the table, for all rows."""
    nearest, latest = u.q_pos[0], u.k_pos[end - 1]
    if not u.consecutive:
        for r in range(u.q_pos.size):
            nearest = min(nearest, u.q_pos[r])
        for t in range(first, end):
            latest = max(latest, u.k_pos[t])
    return bool(nearest - latest >= u.last)


@inlined
def first_cell(nearest: int, last: int) -> int:
    """Of a line whose places are consecutive and that of the first row so far away."""
    return min(max(MARGIN + nearest, 0), MARGIN + last)


@inlined
def locate(q_pos: Array, place: int, last: int, at: Array) -> None:
    for r in range(at.size):
        apart = i32(q_pos[r] - place)
        apart = apart if apart > i32(0) else i32(0)
        at[r] = i32((apart if apart < last else i32(last)) + i32(MARGIN))


@inlined
def look_up(table: Array, at: Array, entry: Array) -> None:
    for r in range(at.size):
        entry[r] = table[np.uint32(at[r])]


@inlined
def spread(ds: Array, at: Array, dtable: Array) -> None:
    for r in range(at.size):
        dtable[np.uint32(at[r])] += ds[r]


@inlined
def spread_along(ds: Array, cells: Array) -> None:
    for r in range(ds.size):
        cells[r] += ds[r]


@inlined
def add_bias(s: Array, bias: Array, top: Array) -> None:
    for r in range(s.size):
        y = s[r] + bias[r]
        s[r] = y
        top[r] = y if y > top[r] else top[r]


@inlined
def biased_gradient(
    s: Array, dp: Array, bias: Array, shift: Array, inverse: Array, D: Array
) -> None:
    """s becomes prob, dp the gradient of the logit."""
    for r in range(s.size):
        prob = exp(s[r] + bias[r] + shift[r]) * inverse[r]
        s[r] = prob
        dp[r] = prob * (dp[r] - D[r])


@compiled
def add(block: Block, u: Unit, w: Work) -> None:
    """Biases the logits and notes the largest."""
    table, q_pos, at, entry, top, rows = u.table, u.q_pos, w.at, w.entry, w.top, block.rows
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, rows)
        hide(key, t - block.diagonal)
        place = u.k_pos[t - block.free]
        if u.consecutive:
            cell = first_cell(q_pos[0] - place, u.last)
            add_bias(key, table[cell : cell + rows], top)
        else:
            locate(q_pos, place, u.last, at)
            look_up(table, at, entry)
            add_bias(key, entry, top)


@compiled
def back(block: Block, u: Unit, w: Work, sums: Sums) -> None:
    """Turns logits into prob and dp into ds, and gathers the gradient of the table."""
    table, q_pos, at, entry, rows = u.table, u.q_pos, w.at, w.entry, block.rows
    shift, inverse, D, dtable = w.shift, w.inverse, w.D, sums.table
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, rows)
        dkey = line(block.dp, t, block.stride, rows)
        hide(key, t - block.diagonal)
        place = u.k_pos[t - block.free]
        if u.consecutive:
            cell = first_cell(q_pos[0] - place, u.last)
            biased_gradient(key, dkey, table[cell : cell + rows], shift, inverse, D)
            if sums.wanted:
                spread_along(dkey, dtable[cell : cell + rows])
        else:
            locate(q_pos, place, u.last, at)
            look_up(table, at, entry)
            biased_gradient(key, dkey, entry, shift, inverse, D)
            if sums.wanted:
                spread(dkey, at, dtable)
