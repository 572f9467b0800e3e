"""What a bias does to a block of logits, form by form; compiled, float32, on CPUs.

Each form has a function that adds it to the logits, for the forward, and one for the backward,
which turns logits into probabilities and gathers the gradients of the form's vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xcope.ops.tiling.lines import hide, line, sum_of, top_of
from xcope.ops.tiling.numba_runtime import Array, compiled, exp, f32, i32, inlined

FREE, SEPARABLE, BY_DISTANCE, PIECEWISE, FAR = range(5)
"""What biases some keys: nothing, one of the forms, or only the last entry of a table."""

ROWS = 256  # queries of a unit, at most
MARGIN = ROWS  # how much wider a table is than its distances, at either end


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


# -- b = row − key, a constant or nothing --------------------------------------------------------
#
# A constant is added where logits are exponentiated.


@inlined
def add_difference(s: Array, row: Array, key: Any, top: Array) -> None:
    """Of two numbers that may be large the difference is taken first."""
    for r in range(s.size):
        y = s[r] + (row[r] - key)
        s[r] = y
        top[r] = y if y > top[r] else top[r]


@inlined
def separable_gradient(
    s: Array, dp: Array, row: Array, key: Any, shift: Array, inverse: Array, D: Array
) -> None:
    """s becomes prob, dp the gradient of the logit."""
    for r in range(s.size):
        prob = exp(s[r] + (row[r] - key) + shift[r]) * inverse[r]
        s[r] = prob
        dp[r] = prob * (dp[r] - D[r])


@inlined
def gradient(s: Array, dp: Array, shift: Array, inverse: Array, D: Array) -> None:
    """The same where there is no bias, or ``shift`` has it."""
    for r in range(s.size):
        prob = exp(s[r] + shift[r]) * inverse[r]
        s[r] = prob
        dp[r] = prob * (dp[r] - D[r])


@inlined
def sum_to(total: Array, x: Array) -> None:
    for r in range(x.size):
        total[r] += x[r]


@inlined
def take_from(total: Array, x: Array) -> None:
    for r in range(x.size):
        total[r] -= x[r]


@compiled
def add_separable(block: Block, u: Unit, w: Work) -> None:
    """Bias the logits, but for the constant, and note the largest."""
    row, key_of, top, separable = w.row, u.key, w.top, block.form == SEPARABLE
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, block.rows)
        hide(key, t - block.diagonal)
        if separable:
            add_difference(key, row, key_of[t - block.free], top)
        else:
            top_of(key, top)


@compiled
def back_separable(block: Block, u: Unit, w: Work, sums: Sums) -> None:
    """Turn logits into prob and dp into ds, and gather the gradient of the bias.

    A row's ds sum up to 0: those of keys that have a place are what the others leave.
    """
    row, key_of, shift, inverse, D, ds = w.row, u.key, w.shift, w.inverse, w.D, w.ds
    separable = block.form == SEPARABLE
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, block.rows)
        dkey = line(block.dp, t, block.stride, block.rows)
        hide(key, t - block.diagonal)
        if separable:
            separable_gradient(key, dkey, row, key_of[t - block.free], shift, inverse, D)
        else:
            gradient(key, dkey, shift, inverse, D)
        if sums.wanted:
            if separable:
                sums.key[t - block.free] -= sum_of(dkey)
            elif block.form == FAR:
                sum_to(ds, dkey)
            elif u.form == SEPARABLE:
                take_from(sums.row, dkey)


# -- b = table[δ] --------------------------------------------------------------------------------
#
# Distances of rows whose places are consecutive lie side by side in the table, so that a line's
# entries are a piece of it, as they stand; in its margins the outermost entries are repeated, so
# that the piece needs no clamp. Other places are looked up one by one.


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
    """Where in the table a line begins: places are consecutive, the first row's so far away."""
    return min(max(MARGIN + nearest, 0), MARGIN + last)


@inlined
def locate(q_pos: Array, place: int, last: int, at: Array) -> None:
    """Where in the table the rows' distances from a place are."""
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
def add_by_distance(block: Block, u: Unit, w: Work) -> None:
    """Bias the logits and note the largest."""
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
def back_by_distance(block: Block, u: Unit, w: Work, sums: Sums) -> None:
    """Turn logits into prob and dp into ds, and gather the gradient of the table."""
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


# -- b = slope[s] t + offset[s], t = warp[δ] · shrink --------------------------------------------
#
# A row stays in its segment s for many keys: the segment's bounds and its line are kept with the
# row, and only rows that stray out of their bounds look for another one.


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
    """Move rows that strayed to their segments; what they gathered goes to the old ones."""
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
    """Add what a row has gathered to its segment."""
    sums.slope[w.segment[r]] += w.ds_t[r]
    sums.offset[w.segment[r]] += w.ds[r]
    w.ds_t[r] = f32(0)
    w.ds[r] = f32(0)


@compiled
def pay_all(w: Work, sums: Sums) -> None:
    """Add what all rows have gathered to their segments, after the last block."""
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
def add_piecewise(block: Block, u: Unit, w: Work, none: Sums) -> None:
    """Bias the logits and note the largest."""
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
def back_piecewise(block: Block, u: Unit, w: Work, sums: Sums) -> None:
    """Turn logits into prob and dp into ds, and gather the gradients of the vectors."""
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
