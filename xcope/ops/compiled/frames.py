"""What compiled attention works on: a call's tensors in memory, and the frames of its rows.

Work is done for LANES queries of one head at a time, a lane for each: their *rows*. All that is
known of them lies in one piece of memory, their frame. The queries are so cut that the last
vector is full: of the first, lanes may come before query 0. They hold query 0, see no key, and
nothing of theirs is written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from xcope.ops.compiled.runtime import Array, compiled, floats, integers, pointer
from xcope.ops.compiled.simd import (
    LANES,
    LINE,
    largest,
    load,
    load_integers,
    smallest,
    store,
    store_integers,
    transpose,
)

KEYS = 64  # keys of a block, at most
VECTORS, MIXED = 4, 32  # frames of a thread, if heads are not more; where gates are mixed

# -- a call --------------------------------------------------------------------------------------

SIZES = (
    "b", "h", "hk", "i", "j", "d", "dv", "dr",  # the last three in whole vectors
    "causal",
    "heads",  # that are worked on together: those of a key head, or all where gates are mixed
    "vectors",  # of each of them that are: what meets a block of keys one after the other
    "chunks",  # shares of a key head's queries
    "tasks",
    "frame",  # bytes
    "scratch",  # address of all threads' frames
)  # fmt: skip
OF_TOKENS = ("q", "r", "out", "dout", "dq", "dr_", "k", "v", "gate_k", "dk", "dv_", "dgate_k")
OF_EACH_ROW = ("m", "inverse", "counted", "start")  # (b h i)
COUNT, DISTANCE, DECAY, STICK = range(4)  # recurrences
COUNTING = (
    "recurrence",
    "own",  # the query's own key, or gate, takes part
    "remainder",  # what is left of a stick goes to the query's own value
    "bare",  # keys before the first that decays
    "hidden_gates",  # masked keys have gates, too
    "table",  # (p d), or one for each head; 0: nothing is counted
    "table_step",  # bytes from head to head
    "last",  # the largest position
    "dtable",  # one for each thread
    "dtable_step",  # bytes from thread to thread
    "mix",  # (h h), or 0
    "dmix",  # one for each thread
    "dmix_step",  # numbers from thread to thread
)  # fmt: skip
OF_BIAS = ("row", "key", "distances", "q_pos", "k_pos", "shrink", "knots", "slope", "offset")

CALL = np.dtype(
    [(name, np.int64) for name in SIZES]
    # address (0: there is none), and bytes from row to row of the batch, head to head, token to
    # token; what keys gather has a piece for each chunk
    + [(name + of, np.int64) for name in OF_TOKENS for of in ("", "_b", "_h", "_n", "_c")]
    + [(name, np.int64) for name in OF_EACH_ROW]
    # bool, broadcast by steps of 0
    + [("mask" + of, np.int64) for of in ("", "_b", "_h", "_i", "_j")]
    # int32 (2, i) for each row of the batch, see `xcope.ops.windows`
    + [("window", np.int64), ("window_b", np.int64)]
    + [(name, np.int64) for name in COUNTING]
    + [(name, np.int64) for name in ("form", "free", "consecutive", "farthest", "bias_wanted")]
    # of each vector of a bias: address, length, and how many there are
    + [(part + name, np.int64) for name in OF_BIAS for part in ("", "n_", "many_")]
    # addresses of their gradients, each (chunks, b · h, length)
    + [("d_" + name, np.int64) for name in OF_BIAS]
    + [(name, np.float64) for name in ("scale", "gate_scale", "sharpness", "rate")]
)


@compiled
def call_at(address: int) -> Any:
    return numba.carray(pointer(address), (1,), dtype=CALL)[0]


class Place(NamedTuple):
    """Which rows a frame is of."""

    batch: int
    head: int
    key_head: int
    query: int  # of the first lane; may be below 0
    seen: int  # keys that the last lane may see
    chunk: int


@compiled
def vectors_of(call: Any) -> Any:
    """How many vectors the queries of a head are."""
    return (call.i + LANES - 1) // LANES


@compiled
def place_of(call: Any, task: int, vector: int, head: int) -> Place:
    """The ``vector``-th rows of the ``head``-th of a task's heads."""
    group, chunk = divmod(task, call.chunks)
    batch, first = divmod(group, call.h // call.heads)
    head += first * call.heads
    query = call.i - LANES * (vectors_of(call) - vector)
    seen = call.j
    if call.causal:
        seen = max(0, min(call.j, call.j - call.i + query + LANES))
    return Place(batch, head, head // (call.h // call.hk), query, seen, chunk)


# -- frames --------------------------------------------------------------------------------------

# Lines of a frame: numbers that rows carry from block to block
(
    M, TOTAL, INVERSE, D, TOP,
    FLOOR, FRACTION, LOW, HIGH, D_LOW, D_HIGH, LIFT, LOST, LOST_REST,
    ROW, Q_POS, SHRINK, SEGMENT, LEAST, MOST, SLOPE, OFFSET, D_ROW, D_SHRINK, DS, DS_T,
    SPARE, _, LEAD, NEAR, NUMBERS,
) = range(31)  # fmt: skip
LINES = 31
# of NUMBERS: rows of L that there are; the first key that is counted; the largest LEAD and the
# smallest NEAR, between which no lane sees a key
READY, START, LEADING, NEAREST = range(4)


class Frame(NamedTuple):
    """Addresses. Of rows beside each other: (n, LANES); of rows below each other: (LANES, n)."""

    lines: int
    q: int  # rows below each other
    q_beside: int
    dout: int
    dout_beside: int
    sums: int  # out or dq, rows below each other
    s: int  # (KEYS, LANES): logits, then exp(y − m) or prob
    a: int  # (KEYS, LANES): what gates are made of; s itself as far as it is the same
    raw: int  # (KEYS, LANES): that before heads are mixed
    gates: int  # (KEYS, LANES), int32, multiples of 1 / ONE
    ds: int  # (KEYS, LANES)
    table: int  # (p, LANES): L
    dtable: int
    r: int  # as q, of what stands in for it where positions are read or gates are made; q itself
    r_beside: int
    r_sums: int


def size_of_frame(d: int, dv: int, dr: int, positions: int) -> int:
    """In bytes; dr is 0 where there is no r."""
    return LINE * (LINES + 2 * d + 2 * dv + max(d, dv) + 5 * KEYS + 2 * positions + 3 * dr)


@compiled
def frame_at(call: Any, scratch: int, which: int) -> Frame:
    positions = call.last + 1 if call.table else 0
    lines = scratch + which * call.frame
    q = lines + LINE * LINES
    q_beside = q + LINE * call.d
    dout = q_beside + LINE * call.d
    dout_beside = dout + LINE * call.dv
    sums = dout_beside + LINE * call.dv
    s = sums + LINE * max(call.d, call.dv)
    raw = s + LINE * KEYS
    gates = raw + LINE * KEYS
    ds = gates + LINE * KEYS
    a = ds + LINE * KEYS
    table = a + LINE * KEYS
    if not (call.gate_k or call.mix):
        a = s
    dtable = table + LINE * positions
    r = dtable + LINE * positions
    r_beside = r + LINE * call.dr
    r_sums = r_beside + LINE * call.dr
    if not call.r:
        r, r_beside, r_sums = q, q_beside, sums
    return Frame(
        lines, q, q_beside, dout, dout_beside, sums, s, a, raw, gates, ds, table, dtable,
        r, r_beside, r_sums,
    )  # fmt: skip


@compiled
def line(frame: Frame, which: int) -> int:
    return frame.lines + LINE * which


@compiled
def numbers(frame: Frame) -> Array:
    return integers(line(frame, NUMBERS), (LANES,))


# -- what rows have in a call's tensors ----------------------------------------------------------


@compiled
def row_address(address: int, call: Any, place: Place) -> Any:
    """Of a number for each row (b h i), 4 bytes each: where the first lane's lies."""
    return address + 4 * ((place.batch * call.h + place.head) * call.i + place.query)


@compiled
def read_line(address: int, before: int, out: int) -> None:
    """A number for each lane; the first that there is stands for ``before`` lanes."""
    if before <= 0:
        store(out, load(address))
    else:
        source, lanes = floats(address, (LANES,)), floats(out, (LANES,))
        for r in range(LANES):
            lanes[r] = source[max(r, before)]


@compiled
def read_integers(address: int, before: int, out: int) -> None:
    if before <= 0:
        store_integers(out, load_integers(address))
    else:
        source, lanes = integers(address, (LANES,)), integers(out, (LANES,))
        for r in range(LANES):
            lanes[r] = source[max(r, before)]


@compiled
def write_line(lanes: int, before: int, address: int) -> None:
    if before <= 0:
        store(address, load(lanes))
    else:
        source, out = floats(lanes, (LANES,)), floats(address, (LANES,))
        for r in range(before, LANES):
            out[r] = source[r]


@compiled
def read_rows(address: int, step: int, before: int, width: int, below: int, beside: int) -> None:
    """Copy LANES rows, as they lie and as columns; row 0, at ``address``, stands for ``before``."""
    for r in range(LANES):
        source = address + step * max(0, r - before)
        for column in range(0, 4 * width, LINE):
            store(below + 4 * width * r + column, load(source + column))
    for column in range(0, 4 * width, LINE):
        transpose(below + column, 4 * width, beside + LANES * column, LINE)


# -- the keys of a window ------------------------------------------------------------------------


@compiled
def enter_window(call: Any, place: Place, frame: Frame) -> None:
    """Note which keys the rows see, of those that come before them."""
    number = numbers(frame)
    number[LEADING], number[NEAREST] = 0, 0  # everything is near
    if call.window:
        lead = call.window + place.batch * call.window_b + 4 * place.query
        read_integers(lead, -place.query, line(frame, LEAD))
        read_integers(lead + 4 * call.i, -place.query, line(frame, NEAR))
        number[LEADING] = largest(load_integers(line(frame, LEAD)))
        number[NEAREST] = smallest(load_integers(line(frame, NEAR)))


@compiled
def hidden_of(call: Any, scratch: int, frames: int) -> Any:
    """The keys that the rows of these frames do not see: first, and the one past the last."""
    lead, near = 0, call.j
    for which in range(frames):
        number = numbers(frame_at(call, scratch, which))
        lead, near = max(lead, int(number[LEADING])), min(near, int(number[NEAREST]))
    return lead, max(lead, near)
