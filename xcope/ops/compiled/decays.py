"""Decays over a block of logits, and sticks that break: what gates take off, and its gradients.

The letters are those of `xcope.ops.cope.reference`, the steps those of `xcope.ops.cope.cpu.decay`.
Rows as in `xcope.ops.compiled.frames`.

What a row has lost is kept as two numbers, LOST and what rounding took from it, LOST_REST: as exact
however long the row, and the backward, which takes the gates' shares off again, comes down to 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcope.ops.compiled.frames import (
    INVERSE,
    LIFT,
    LOST,
    LOST_REST,
    START,
    STICK,
    TOP,
    TOTAL,
    D,
    Frame,
    M,
    Place,
    line,
    numbers,
)
from xcope.ops.compiled.runtime import booleans, compiled, f32, floats, i32
from xcope.ops.compiled.simd import (
    LANES,
    LINE,
    any_of,
    exp,
    exp_of_minus_abs,
    lane_numbers,
    load,
    softplus,
    spread,
    store,
    where,
)

GONE = f32(50.0)  # as much less leaves nothing of a stick, see `simd.exp`


@compiled
def enter_forward(call: Any, frame: Frame) -> None:
    numbers(frame)[START] = -1
    for kept in (LOST, LOST_REST):
        store(line(frame, kept), spread(f32(0)))
    if call.recurrence == STICK:  # no softmax: weights are exp(y)
        store(line(frame, M), spread(f32(0)))


@compiled
def gone(call: Any, frame: Frame, end: int) -> bool:
    """Whether nothing is left of the sticks for keys before ``end``; notes where that was so."""
    if call.recurrence != STICK:
        return False
    start = numbers(frame)
    if start[START] < 0 and not any_of(load(line(frame, LOST)) < GONE):
        start[START] = end
    return bool(start[START] >= 0)


@compiled
def was_gone(call: Any, frame: Frame, end: int) -> bool:
    """Whether the forward found nothing left for the keys before ``end``."""
    return call.recurrence == STICK and bool(numbers(frame)[START] >= end)


@compiled
def hide_gates(call: Any, place: Place, frame: Frame, first: int, keys: int) -> None:
    """Set −∞ in ``a`` where a key has no gate, or breaks nothing off.

    Keys after the query have no gates; of sticks, all but the query's own take part.
    """
    stick, lanes = call.recurrence == STICK, lane_numbers()
    if stick and call.own:
        return
    ahead = place.query + call.j - call.i  # the first lane's own key
    end = min(keys, ahead - first + LANES) if stick else keys
    for t in range(max(0, ahead - first), end):
        its, logits = i32(first + t - ahead), frame.a + LINE * t  # the lane whose own key it is
        without = lanes < its if call.own else lanes <= its
        if stick:
            without = without & (lanes >= its)
        store(logits, where(without, spread(f32(-np.inf)), load(logits)))


@compiled
def forward(call: Any, frame: Frame, first: int, keys: int) -> Any:
    """Take off the logits in ``s`` what gates take, from the last key backwards.

    Returns:
        The largest of each row; of sticks −∞, whose m stays 0.
    """
    stick, rate = call.recurrence == STICK, f32(call.rate)
    after = stick or not call.own
    lost, rest = load(line(frame, LOST)), load(line(frame, LOST_REST))
    top, begin = spread(f32(-np.inf)), min(keys, max(0, call.bare - first))
    for t in range(keys - 1, begin - 1, -1):
        x, s = load(frame.a + LINE * t), load(frame.s + LINE * t)
        y = (s - lost) - rest
        share = softplus(x, exp_of_minus_abs(x)) * rate
        more = lost + share
        grown = more - lost
        rest = rest + ((lost - (more - grown)) + (share - grown))
        lost = more
        if after:
            y = (s - lost) - rest
        store(frame.s + LINE * t, y)
        top = where(y > top, y, top)
    for t in range(begin):
        s = load(frame.s + LINE * t)
        top = where(s > top, s, top)
    store(line(frame, LOST), lost)
    store(line(frame, LOST_REST), rest)
    return spread(f32(-np.inf)) if stick else top


@compiled
def own_key(call: Any, place: Place, r: int) -> Any:
    """Of a lane: its query's own key, or −1 where it is not seen or there is none."""
    key = place.query + r + call.j - call.i
    if place.query + r < 0 or key < 0:
        return -1
    if call.mask:
        seen = call.mask + place.batch * call.mask_b + place.head * call.mask_h
        seen += (place.query + r) * call.mask_i + key * call.mask_j
        if not booleans(seen, (1,))[0]:
            return -1
    return key


@compiled
def leave_forward(call: Any, place: Place, frame: Frame) -> None:
    """Of sticks: what is left to the own value, and nothing to be divided by."""
    if call.recurrence != STICK:
        return
    store(line(frame, TOTAL), spread(f32(1)))
    if not call.remainder:
        return
    left = _left(frame)
    for r in range(LANES):
        key = own_key(call, place, r)
        if key >= 0:
            v = call.v + place.batch * call.v_b + place.key_head * call.v_h + key * call.v_n
            for column in range(0, 4 * call.dv, LINE):
                out = frame.sums + 4 * call.dv * r + column
                store(out, load(out) + load(v + column) * left[r])


@compiled
def _left(frame: Frame) -> Any:
    """What is left of each row's stick, in the line TOP."""
    lost = load(line(frame, LOST)) + load(line(frame, LOST_REST))
    store(line(frame, TOP), exp(f32(0) - lost))
    return floats(line(frame, TOP), (LANES,))


# -- backward ------------------------------------------------------------------------------------


@compiled
def enter_backward(call: Any, place: Place, frame: Frame) -> None:
    """LOST, LOST_REST and START as the forward left them.

    Of sticks, D is what dout makes of the own value, to which the remainder goes; whose gradient
    is added here.
    """
    store(line(frame, LIFT), spread(f32(0)))
    if call.recurrence != STICK:
        return
    store(line(frame, D), spread(f32(0)))
    if call.remainder:
        left, d = _left(frame), floats(line(frame, D), (LANES,))
        for r in range(LANES):
            key = own_key(call, place, r)
            if key < 0:
                continue
            v = call.v + place.batch * call.v_b + place.key_head * call.v_h + key * call.v_n
            dv = call.dv_ + place.batch * call.dv__b + place.key_head * call.dv__h
            dv += key * call.dv__n + place.chunk * call.dv__c
            dout = frame.dout + 4 * call.dv * r
            its, douts = floats(v, (call.dv,)), floats(dout, (call.dv,))
            for column in range(call.dv):
                d[r] += its[column] * douts[column]
            for column in range(0, 4 * call.dv, LINE):
                store(dv + column, load(dv + column) + load(dout + column) * left[r])


@compiled
def backward(call: Any, frame: Frame, first: int, keys: int) -> None:
    """Turn logits in ``s`` into weights, ``ds`` into the logits' gradients, ``a`` into the gates'.

    Where ``a`` is ``s``, its gradient is added to ``ds``.
    """
    stick, rate = call.recurrence == STICK, f32(call.rate)
    after = stick or not call.own
    m, inverse, d = load(line(frame, M)), load(line(frame, INVERSE)), load(line(frame, D))
    lost, rest, lift = (
        load(line(frame, LOST)),
        load(line(frame, LOST_REST)),
        load(line(frame, LIFT)),
    )
    begin = min(keys, max(0, (numbers(frame)[START] if stick else call.bare) - first))
    for t in range(begin):
        prob = spread(f32(0))
        if not stick:
            prob = exp(load(frame.s + LINE * t) - m) * inverse
            store(frame.a + LINE * t, spread(f32(0)))
        store(frame.s + LINE * t, prob)
        ds = prob * (load(frame.ds + LINE * t) - d)
        store(frame.ds + LINE * t, ds)
    for t in range(begin, keys):
        x, s = load(frame.a + LINE * t), load(frame.s + LINE * t)
        e = exp_of_minus_abs(x)
        share = softplus(x, e) * rate
        y = (s - lost) - rest
        less = lost - share
        shrunk = less - lost
        rest = rest + ((lost - (less - shrunk)) - (share + shrunk))
        lost = less
        if not after:
            y = (s - lost) - rest
        prob = exp(y - m) * inverse
        ds = prob * (load(frame.ds + LINE * t) - d)
        before = lift
        lift = lift + ds
        da = lift if after else before
        da = f32(0) - da * rate * (where(x > f32(0), spread(f32(1)), e) / (e + f32(1)))
        store(frame.s + LINE * t, prob)
        if stick:
            store(frame.ds + LINE * t, ds + da)
        else:
            store(frame.ds + LINE * t, ds)
            store(frame.a + LINE * t, da)
    store(line(frame, LOST), lost)
    store(line(frame, LOST_REST), rest)
    store(line(frame, LIFT), lift)
