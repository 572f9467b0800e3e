"""CoPE's count over a block of logits: positions, the bias that follows, and their gradients.

The letters are those of `xcope.ops.cope.reference`, the steps those of `xcope.ops.cope.walk`. Rows
as in `xcope.ops.compiled.frames`.

A count is kept in whole numbers, its floor f and its fraction w as a multiple of 1 / ONE: as
exact however long the row, and the backward, which takes the gates off again, finds the very
positions of the forward. From one key to the next f moves by 1 at most, so L[f] and L[f + 1] are
carried along, and so are their gradients: each entry of L is read, and each of its gradients
written, once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcope.ops.compiled.frames import (
    D_HIGH,
    D_LOW,
    DISTANCE,
    FLOOR,
    FRACTION,
    HIGH,
    INVERSE,
    LIFT,
    LOW,
    READY,
    START,
    D,
    Frame,
    M,
    Place,
    line,
    numbers,
)
from xcope.ops.compiled.runtime import compiled, f32, i32
from xcope.ops.compiled.simd import (
    LANES,
    LINE,
    any_of,
    exp,
    floats_of,
    gather,
    integers_of,
    lane_numbers,
    largest,
    load,
    load_integers,
    multiply,
    scatter,
    sigmoid,
    smallest,
    spread,
    spread_integer,
    store,
    store_integers,
    where,
    where_integers,
)

ONE = i32(2**30)  # a gate of 1; two of them still fit


@compiled
def whole(gate: Any) -> Any:
    """A gate as a multiple of 1 / ONE; where it is NaN, any that does not overflow a count."""
    gate = where(gate < f32(1), gate, spread(f32(1)))
    return integers_of(gate * f32(ONE) + f32(0.5))


@compiled
def gate_of(call: Any, a: Any) -> Any:
    """The gates of their logits; 1 wherever a key is seen where distances are counted."""
    if call.recurrence == DISTANCE:
        return where(a > f32(-np.inf), spread(f32(1)), spread(f32(0)))
    return sigmoid(a)


@compiled
def _table(call: Any, place: Place) -> Any:
    return call.table + place.head * call.table_step


@compiled
def prepare(call: Any, place: Place, frame: Frame, positions: int) -> None:
    """Make L = r eᵀ up to so many positions, as far as they are not there yet."""
    ready = numbers(frame)
    positions = min(positions, call.last + 1)
    if positions > ready[READY]:
        done, width = int(ready[READY]), 4 * call.dr
        multiply(
            frame.table + LINE * done, LINE, _table(call, place) + width * done, width, 4,
            frame.r_beside, LINE, positions - done, LANES, call.dr, False,
        )  # fmt: skip
        ready[READY] = positions


@compiled
def at_position(call: Any, frame: Frame, f: Any) -> Any:
    """L[f] of each lane, f at most the last position."""
    f = where_integers(f < i32(call.last), f, spread_integer(i32(call.last)))
    every = lane_numbers() >= i32(0)
    return gather(frame.table, f * i32(LANES) + lane_numbers(), every, spread(f32(0)))


@compiled
def enter_forward(call: Any, place: Place, frame: Frame) -> None:
    numbers(frame)[READY] = 0
    numbers(frame)[START] = -1
    none = spread_integer(i32(0))
    store_integers(line(frame, FLOOR), none)
    store_integers(line(frame, FRACTION), none)
    prepare(call, place, frame, 2)
    store(line(frame, LOW), at_position(call, frame, none))
    store(line(frame, HIGH), at_position(call, frame, none + i32(1)))


@compiled
def counting(call: Any, frame: Frame, end: int) -> bool:
    """Whether gates of the keys before ``end`` are counted; notes where that ended.

    Not once all rows are saturated.
    """
    if not call.table:
        return False
    start = numbers(frame)
    if start[START] < 0 and smallest(load_integers(line(frame, FLOOR))) >= call.last:
        start[START] = end
    return bool(start[START] < 0)


@compiled
def counted(call: Any, frame: Frame, end: int) -> bool:
    """Whether the forward counted gates of keys before ``end``."""
    return bool(call.table) and bool(numbers(frame)[START] < end)


@compiled
def soft(u: Any, sharpness: Any) -> Any:
    return sigmoid((u * f32(2) - f32(1)) * sharpness)


@compiled
def forward(call: Any, place: Place, frame: Frame, keys: int) -> Any:
    """Add the bias to the logits in ``s``, from the last key backwards; the largest of each row.

    What is hidden has a logit of −∞, in ``s`` and in ``a``.
    """
    f, w = load_integers(line(frame, FLOOR)), load_integers(line(frame, FRACTION))
    for t in range(keys - 1, -1, -1):
        gate = whole(gate_of(call, load(frame.a + LINE * t)))
        store_integers(frame.gates + LINE * t, gate)
        w = w + gate
        carry = w >= ONE
        w = where_integers(carry, w - ONE, w)
        f = where_integers(carry, f + i32(1), f)
    prepare(call, place, frame, largest(f) + 2)

    last, sharpness = i32(call.last), f32(call.sharpness)
    f, w = load_integers(line(frame, FLOOR)), load_integers(line(frame, FRACTION))
    low, high = load(line(frame, LOW)), load(line(frame, HIGH))
    top, lanes, zero = load(line(frame, M)), lane_numbers(), spread(f32(0))
    for t in range(keys - 1, -1, -1):
        w = w + load_integers(frame.gates + LINE * t)
        carry = w >= ONE
        w = where_integers(carry, w - ONE, w)
        f = where_integers(carry, f + i32(1), f)
        moved = carry & (f <= last)
        if any_of(moved):
            low = where(moved, high, low)
            following = where_integers(f < last, f + i32(1), spread_integer(last))
            high = gather(frame.table, following * i32(LANES) + lanes, moved, high)
        u = floats_of(w) * f32(1 / ONE)
        if sharpness > 0:
            u = soft(u, sharpness)
        u = where(f >= last, zero, u)
        y = load(frame.s + LINE * t) + low + u * (high - low)
        store(frame.s + LINE * t, y)
        top = where(y > top, y, top)
    store_integers(line(frame, FLOOR), f)
    store_integers(line(frame, FRACTION), w)
    store(line(frame, LOW), low)
    store(line(frame, HIGH), high)
    return top


# -- backward ------------------------------------------------------------------------------------


@compiled
def enter_backward(call: Any, place: Place, frame: Frame) -> None:
    """FLOOR, FRACTION and START as the forward left them."""
    f = load_integers(line(frame, FLOOR))
    numbers(frame)[READY] = 0
    prepare(call, place, frame, largest(f) + 2)
    store(line(frame, LOW), at_position(call, frame, f))
    store(line(frame, HIGH), at_position(call, frame, f + i32(1)))
    zero = spread(f32(0))
    for gathered in (D_LOW, D_HIGH, LIFT):
        store(line(frame, gathered), zero)
    for position in range(numbers(frame)[READY]):
        store(frame.dtable + LINE * position, zero)


@compiled
def backward(
    call: Any, place: Place, frame: Frame, first: int, keys: int, counting: bool
) -> None:  # fmt: skip
    """Turn logits in ``s`` into prob, ``ds`` into the logits' gradients, ``a`` into the gates'.

    Where ``a`` is ``s``, its gradient is added to ``ds``. Without ``counting`` nothing is done with
    ``a``: all rows are saturated, and those of the other heads if heads are mixed.
    """
    last, sharpness, apart = i32(call.last), f32(call.sharpness), frame.a != frame.s
    m, inverse, d = load(line(frame, M)), load(line(frame, INVERSE)), load(line(frame, D))
    f, w = load_integers(line(frame, FLOOR)), load_integers(line(frame, FRACTION))
    low, high = load(line(frame, LOW)), load(line(frame, HIGH))
    d_low, d_high = load(line(frame, D_LOW)), load(line(frame, D_HIGH))
    lift, zero, lanes = load(line(frame, LIFT)), spread(f32(0)), lane_numbers()

    saturated = min(keys, max(0, numbers(frame)[START] - first))
    for t in range(saturated):
        prob = exp(load(frame.s + LINE * t) + low - m) * inverse
        ds = prob * (load(frame.ds + LINE * t) - d)
        d_low = d_low + ds
        store(frame.s + LINE * t, prob)
        store(frame.ds + LINE * t, ds)
    if apart and counting:
        for t in range(saturated):
            store(frame.a + LINE * t, zero)

    for t in range(saturated, keys):
        gate = gate_of(call, load(frame.a + LINE * t))
        u = floats_of(w) * f32(1 / ONE)
        slope = spread(f32(1))
        if sharpness > 0:
            u = soft(u, sharpness)
            slope = u * (f32(1) - u) * (f32(2) * sharpness)
        u = where(f >= last, zero, u)
        rise = high - low  # 0 past the last position
        prob = exp(load(frame.s + LINE * t) + low + u * rise - m) * inverse
        ds = prob * (load(frame.ds + LINE * t) - d)
        lift = lift + ds * rise * slope
        da = lift * gate * (f32(1) - gate)
        upper = ds * u
        d_high = d_high + upper
        d_low = d_low + (ds - upper)
        store(frame.s + LINE * t, prob)
        if apart:
            store(frame.ds + LINE * t, ds)
            store(frame.a + LINE * t, da)
        else:
            store(frame.ds + LINE * t, ds + da)

        w = w - whole(gate)
        borrow = w < i32(0)
        w = where_integers(borrow, w + ONE, w)
        moved = borrow & (f <= last)
        if any_of(moved):
            above = (f + i32(1)) * i32(LANES) + lanes
            scatter(frame.dtable, above, borrow & (f < last), d_high)
            high = where(moved, low, high)
            low = gather(frame.table, (f - i32(1)) * i32(LANES) + lanes, moved, low)
            d_high = where(moved, d_low, d_high)
            d_low = where(moved, zero, d_low)
        f = where_integers(borrow, f - i32(1), f)
    store_integers(line(frame, FLOOR), f)
    store_integers(line(frame, FRACTION), w)
    for which, x in ((LOW, low), (HIGH, high), (D_LOW, d_low), (D_HIGH, d_high), (LIFT, lift)):
        store(line(frame, which), x)


@compiled
def leave_backward(call: Any, place: Place, frame: Frame, dtable: int) -> None:
    """Add the gradients of L to those of r, in ``r_sums``, and of the table."""
    f, lanes, last = load_integers(line(frame, FLOOR)), lane_numbers(), i32(call.last)
    at = where_integers(f < last, f, spread_integer(last)) * i32(LANES) + lanes
    scatter(frame.dtable, at, lanes >= i32(0), load(line(frame, D_LOW)))
    scatter(frame.dtable, at + i32(LANES), f < last, load(line(frame, D_HIGH)))
    positions, width = int(numbers(frame)[READY]), 4 * call.dr
    multiply(
        frame.r_sums, width, frame.dtable, 4, LINE, _table(call, place), width, LANES, call.dr,
        positions, True,
    )  # fmt: skip
    multiply(
        dtable + place.head * call.table_step, width, frame.dtable, LINE, 4, frame.r, width,
        positions, call.dr, LANES, True,
    )  # fmt: skip
