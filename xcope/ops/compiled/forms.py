"""What an index bias does to a block of logits, form by form; compiled.

Rows as in `xcope.ops.compiled.frames`; `xcope.ops.terms` says what the forms are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcope.ops.compiled.frames import (
    D_ROW,
    D_SHRINK,
    DS,
    DS_T,
    LEAST,
    MOST,
    OFFSET,
    Q_POS,
    ROW,
    SEGMENT,
    SHRINK,
    SLOPE,
    SPARE,
    Frame,
    Place,
    line,
    read_integers,
    read_line,
    write_line,
)
from xcope.ops.compiled.runtime import compiled, f32, floats, i32, integers
from xcope.ops.compiled.simd import (
    LANES,
    LINE,
    any_of,
    gather,
    lane_numbers,
    load,
    load_integers,
    spread,
    spread_integer,
    store,
    store_integers,
    total,
    where_integers,
)

FREE, SEPARABLE, BY_DISTANCE, PIECEWISE = range(4)
MARGIN = LANES  # how much wider a table of distances is than its entries, at either end


@compiled
def _vector(address: int, length: int, many: int, which: int) -> int:
    """Where the ``which``-th of ``many`` vectors begins."""
    return address + 4 * length * (which % many)


@compiled
def enter(call: Any, place: Place, frame: Frame) -> None:
    """Note what the rows have of the bias' vectors, before the first block."""
    if call.form == FREE:
        return
    head, first, before = place.batch * call.h + place.head, place.query, -place.query
    zero = spread(f32(0))
    for gathered in (D_ROW, D_SHRINK, DS, DS_T):
        store(line(frame, gathered), zero)
    if call.form == SEPARABLE:
        rows = _vector(call.row, call.n_row, call.many_row, head)
        read_line(rows + 4 * first, before, line(frame, ROW))
        return
    places = _vector(call.q_pos, call.n_q_pos, call.many_q_pos, place.batch)
    read_integers(places + 4 * first, before, line(frame, Q_POS))
    if call.consecutive and before > 0:  # lanes before query 0 go on as the others do
        lanes = integers(line(frame, Q_POS), (LANES,))
        for r in range(LANES - 1):
            lanes[r] = lanes[LANES - 1] - (LANES - 1 - r)
    if call.form == PIECEWISE:
        shrinks = _vector(call.shrink, call.n_shrink, call.many_shrink, place.batch)
        read_line(shrinks + 4 * first, before, line(frame, SHRINK))
        store_integers(line(frame, SEGMENT), spread_integer(i32(0)))
        store(line(frame, LEAST), spread(f32(np.inf)))  # every row has strayed
        store(line(frame, MOST), spread(f32(-np.inf)))


@compiled
def _cell(call: Any, frame: Frame, place_of_key: int) -> Any:
    """Where in the table the first lane's distance lies; those of the others lie beside it."""
    apart = integers(line(frame, Q_POS), (1,))[0] - place_of_key
    return 4 * min(max(MARGIN + apart, 0), MARGIN + call.farthest)


@compiled
def _cells(call: Any, frame: Frame, place_of_key: int) -> Any:
    """Where in the table each lane's distance lies."""
    apart = load_integers(line(frame, Q_POS)) - i32(place_of_key)
    apart = where_integers(apart > i32(0), apart, spread_integer(i32(0)))
    farthest = spread_integer(i32(call.farthest))
    return where_integers(apart < farthest, apart, farthest) + i32(MARGIN)


@compiled
def _entries(call: Any, frame: Frame, table: int, place_of_key: int) -> Any:
    """The table's entries for a key."""
    if call.consecutive:
        return load(table + _cell(call, frame, place_of_key))
    every = lane_numbers() >= i32(0)
    return gather(table, _cells(call, frame, place_of_key), every, spread(f32(0)))


@compiled
def add(call: Any, place: Place, frame: Frame, first: int, keys: int) -> None:
    """Scale the logits of keys first, …, and add the bias to them."""
    scale, begin = f32(call.scale), keys
    if call.form != FREE:
        begin = min(keys, max(0, call.free - first))  # keys before have no place
    for t in range(begin):
        logits = frame.s + LINE * t
        store(logits, load(logits) * scale)
    if begin == keys:
        return
    head = place.batch * call.h + place.head
    if call.form == SEPARABLE:
        keys_of = _vector(call.key, call.n_key, call.many_key, head)
        of_key = floats(keys_of + 4 * (first - call.free), (keys,))
        rows = load(line(frame, ROW))
        for t in range(begin, keys):
            logits = frame.s + LINE * t
            # of two numbers that may be large the difference is taken first
            store(logits, load(logits) * scale + (rows - of_key[t]))
        return
    table = _vector(call.distances, call.n_distances, call.many_distances, head)
    places = _vector(call.k_pos, call.n_k_pos, call.many_k_pos, place.batch)
    k_pos = integers(places + 4 * (first - call.free), (keys,))
    if call.form == BY_DISTANCE:
        for t in range(begin, keys):
            logits = frame.s + LINE * t
            store(logits, load(logits) * scale + _entries(call, frame, table, k_pos[t]))
        return
    for t in range(begin, keys):
        logits = frame.s + LINE * t
        x = _entries(call, frame, table, k_pos[t]) * load(line(frame, SHRINK))
        _settle(call, place, frame, x)
        bias = load(line(frame, SLOPE)) * x + load(line(frame, OFFSET))
        store(logits, load(logits) * scale + bias)


@compiled
def back(call: Any, place: Place, frame: Frame, first: int, keys: int) -> None:
    """Add the logits' gradients, in ``ds``, to those of the bias' vectors."""
    if call.form == FREE or not call.bias_wanted:
        return
    head = place.batch * call.h + place.head
    which = place.chunk * call.b * call.h + head
    begin = min(keys, max(0, call.free - first))
    if call.form == SEPARABLE:
        d_key = floats(call.d_key + 4 * (which * call.n_key + first - call.free), (keys,))
        rows = load(line(frame, D_ROW))
        for t in range(begin, keys):
            ds = load(frame.ds + LINE * t)
            rows = rows + ds
            d_key[t] -= total(ds)
        store(line(frame, D_ROW), rows)
        return
    table = _vector(call.distances, call.n_distances, call.many_distances, head)
    places = _vector(call.k_pos, call.n_k_pos, call.many_k_pos, place.batch)
    k_pos = integers(places + 4 * (first - call.free), (keys,))
    d_table = call.d_distances + 4 * which * call.n_distances
    if call.form == BY_DISTANCE:
        for t in range(begin, keys):
            _spread_out(call, frame, d_table, k_pos[t], load(frame.ds + LINE * t))
        return
    shrink = load(line(frame, SHRINK))
    for t in range(begin, keys):
        ds = load(frame.ds + LINE * t)
        entries = _entries(call, frame, table, k_pos[t])
        x = entries * shrink
        _settle(call, place, frame, x)
        dx = ds * load(line(frame, SLOPE))
        store(line(frame, DS), load(line(frame, DS)) + ds)
        store(line(frame, DS_T), load(line(frame, DS_T)) + ds * x)
        store(line(frame, D_SHRINK), load(line(frame, D_SHRINK)) + dx * entries)
        _spread_out(call, frame, d_table, k_pos[t], dx * shrink)


@compiled
def _spread_out(call: Any, frame: Frame, d_table: int, place_of_key: int, x: Any) -> None:
    if call.consecutive:
        cells = d_table + _cell(call, frame, place_of_key)
        store(cells, load(cells) + x)
        return
    store_integers(line(frame, SPARE), _cells(call, frame, place_of_key))
    store(line(frame, SPARE + 1), x)
    cells, values = integers(line(frame, SPARE), (LANES,)), floats(line(frame, SPARE + 1), (LANES,))
    entries = floats(d_table, (call.n_distances,))
    for r in range(LANES):
        entries[cells[r]] += values[r]


@compiled
def leave(call: Any, place: Place, frame: Frame) -> None:
    """Write the gradients that rows have gathered, after the last block."""
    if call.form == FREE or not call.bias_wanted:
        return
    head, before = place.batch * call.h + place.head, -place.query
    if call.form == SEPARABLE:
        write_line(line(frame, D_ROW), before, call.d_row + 4 * (head * call.i + place.query))
    if call.form == PIECEWISE:
        for r in range(LANES):
            _pay(call, place, frame, r)
        write_line(line(frame, D_SHRINK), before, call.d_shrink + 4 * (head * call.i + place.query))


# -- segments of a piecewise bias ----------------------------------------------------------------
#
# A row stays in its segment for many keys: the segment's bounds and its line are kept with the row,
# and only rows that stray out of their bounds look for another one.


@compiled
def _settle(call: Any, place: Place, frame: Frame, x: Any) -> None:
    """Move rows that strayed to their segments; what they gathered goes to the old ones."""
    if not any_of((x < load(line(frame, LEAST))) | (x >= load(line(frame, MOST)))):
        return
    head = place.batch * call.h + place.head
    store(line(frame, SPARE), x)
    lanes = floats(line(frame, SPARE), (LANES,))
    least, most = floats(line(frame, LEAST), (LANES,)), floats(line(frame, MOST), (LANES,))
    slopes, offsets = floats(line(frame, SLOPE), (LANES,)), floats(line(frame, OFFSET), (LANES,))
    segments = integers(line(frame, SEGMENT), (LANES,))
    knots = floats(_vector(call.knots, call.n_knots, call.many_knots, head), (call.n_knots,))
    slope = floats(_vector(call.slope, call.n_slope, call.many_slope, head), (call.n_slope,))
    offset = floats(_vector(call.offset, call.n_offset, call.many_offset, head), (call.n_offset,))
    for r in range(LANES):
        if lanes[r] < least[r] or lanes[r] >= most[r]:
            if least[r] < most[r]:  # it has been in a segment
                _pay(call, place, frame, r)
            low, high = 0, knots.size
            while low < high:
                middle = (low + high) // 2
                if knots[middle] <= lanes[r]:
                    low = middle + 1
                else:
                    high = middle
            segments[r] = low
            least[r] = knots[low - 1] if low > 0 else f32(-np.inf)
            most[r] = knots[low] if low < knots.size else f32(np.inf)
            slopes[r], offsets[r] = slope[low], offset[low]


@compiled
def _pay(call: Any, place: Place, frame: Frame, r: int) -> None:
    """Add what a row has gathered to its segment."""
    if not call.bias_wanted:
        return
    which = place.chunk * call.b * call.h + place.batch * call.h + place.head
    segments = integers(line(frame, SEGMENT), (LANES,))
    ds, ds_t = floats(line(frame, DS), (LANES,)), floats(line(frame, DS_T), (LANES,))
    d_slope = floats(call.d_slope + 4 * which * call.n_slope, (call.n_slope,))
    d_offset = floats(call.d_offset + 4 * which * call.n_offset, (call.n_offset,))
    d_slope[segments[r]] += ds_t[r]
    d_offset[segments[r]] += ds[r]
    ds[r] = f32(0)
    ds_t[r] = f32(0)
