"""Attention compiled: all of a call's rows in one go, forward or backward, on torch's threads.

Memory O(n (d + p)), and the steps of the walks over tiles (`xcope.ops.biased.cpu.walk`,
`xcope.ops.cope.cpu.walk`): keys are met block by block, from the last one backwards, with a running
softmax; the backward goes the other way round. Keys that a window hides from all rows are left out.
Here a tile is so small (`LANES` queries, `KEYS` keys) that it stays in the nearest cache, between
its products too, which `xcope.ops.compiled.simd` makes. float32, finite numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcope.ops.compiled import counts, decays, forms
from xcope.ops.compiled.frames import (
    DECAY,
    FLOOR,
    FRACTION,
    INVERSE,
    KEYS,
    LEAD,
    LEADING,
    LOST,
    LOST_REST,
    LOW,
    NEAR,
    NEAREST,
    START,
    TOP,
    TOTAL,
    D,
    Frame,
    M,
    Place,
    call_at,
    enter_window,
    frame_at,
    hidden_of,
    line,
    numbers,
    place_of,
    read_line,
    read_rows,
    row_address,
    vectors_of,
    write_line,
)
from xcope.ops.compiled.runtime import (
    all_threads,
    booleans,
    compiled,
    doubles,
    f32,
    floats,
    i32,
    integers,
    kernel,
    this_thread,
)
from xcope.ops.compiled.simd import (
    LANES,
    LINE,
    any_of,
    exp,
    lane_numbers,
    largest,
    load,
    load_integers,
    multiply,
    spread,
    store,
    total,
    where,
)

HEADROOM = f32(30.0)  # how far above m a biased logit may be before m is moved


@compiled
def mine(tasks: int) -> Any:
    """The tasks of this thread."""
    return range(
        tasks * this_thread() // all_threads(), tasks * (this_thread() + 1) // all_threads()
    )


@compiled
def row(
    address: int, of_batch: int, of_head: int, of_token: int, batch: int, head: int, token: int
) -> int:
    return address + batch * of_batch + head * of_head + token * of_token


@compiled
def seen_of(place: Place, frame: Frame, first: int, end: int) -> Any:
    """Of the keys ``first`` … ``end`` − 1 those that a frame's rows see: the first, how many."""
    number = numbers(frame)
    if number[LEADING] <= first < number[NEAREST]:
        first = int(number[NEAREST])
    return first, min(end, place.seen) - first


# -- one block -----------------------------------------------------------------------------------


@compiled
def logits(
    call: Any, place: Place, frame: Frame, first: int, keys: int, counting: bool
) -> None:  # fmt: skip
    """Of the block: scaled and biased, and those of gates that have keys of their own."""
    k = row(call.k, call.k_b, call.k_h, call.k_n, place.batch, place.key_head, first)
    multiply(
        frame.s, LINE, k, call.k_n, 4, frame.q_beside, LINE, keys, LANES, call.d, False
    )  # fmt: skip
    forms.add(call, place, frame, first, keys)
    if counting and call.gate_k:
        k = row(
            call.gate_k, call.gate_k_b, call.gate_k_h, call.gate_k_n, place.batch, place.key_head,
            first,
        )  # fmt: skip
        multiply(
            frame.a, LINE, k, call.gate_k_n, 4, frame.r_beside, LINE, keys, LANES, call.dr, False
        )  # fmt: skip
        scaled(frame.a, f32(call.gate_scale), keys)


@compiled
def scaled(lines: int, scale: Any, keys: int) -> None:
    for t in range(keys):
        store(lines + LINE * t, load(lines + LINE * t) * scale)


@compiled
def mix_heads(call: Any, scratch: int, which: int, apart: int, keys: int) -> None:
    """Gates' logits ``a`` of each head, of those of all heads: frames which, which + apart, …"""
    mix = floats(call.mix, (call.h, call.h))
    for head in range(call.h):
        frame = frame_at(call, scratch, which + head * apart)
        source = frame.a if call.gate_k else frame.s
        for t in range(keys):
            store(frame.raw + LINE * t, load(source + LINE * t))
    for g in range(call.h):
        a = frame_at(call, scratch, which + g * apart).a
        for t in range(keys):
            x, raw = spread(f32(0)), frame_at(call, scratch, which).raw + LINE * t
            for head in range(call.h):
                x = x + load(raw) * mix[g, head]
                raw += apart * call.frame
            store(a + LINE * t, x)


@compiled
def unmix_heads(call: Any, scratch: int, which: int, apart: int, keys: int) -> None:
    """Gradients of ``a`` before heads were mixed, and of the mixing."""
    mix = floats(call.mix, (call.h, call.h))
    dmix = floats(call.dmix + 4 * this_thread() * call.dmix_step, (call.h, call.h))
    for g in range(call.h):
        da = frame_at(call, scratch, which + g * apart).a
        for head in range(call.h):
            raw, x = frame_at(call, scratch, which + head * apart).raw, spread(f32(0))
            for t in range(keys):
                x = x + load(da + LINE * t) * load(raw + LINE * t)
            dmix[g, head] += total(x)
    for head in range(call.h):
        out = frame_at(call, scratch, which + head * apart).raw
        for t in range(keys):
            x, da = spread(f32(0)), frame_at(call, scratch, which).a + LINE * t
            for g in range(call.h):
                x = x + load(da) * mix[g, head]
                da += apart * call.frame
            store(out + LINE * t, x)
    for head in range(call.h):
        frame = frame_at(call, scratch, which + head * apart)
        for t in range(keys):
            x = load(frame.raw + LINE * t)
            if call.gate_k:
                store(frame.a + LINE * t, x)
            else:
                store(frame.ds + LINE * t, load(frame.ds + LINE * t) + x)


@compiled
def hide(call: Any, place: Place, frame: Frame, lines: int, first: int, keys: int) -> None:
    """Set −∞ where a key may not be attended; lanes before query 0 attend to none."""
    infinity = spread(f32(-np.inf))
    if place.query < 0:
        there = lane_numbers() >= i32(-place.query)
        for t in range(keys):
            store(lines + LINE * t, where(there, load(lines + LINE * t), infinity))
    if call.causal:
        ahead = place.query + call.j - call.i  # the last key that the first lane sees
        for t in range(max(0, ahead + 1 - first), keys):
            seen = lane_numbers() >= i32(first + t - ahead)
            store(lines + LINE * t, where(seen, load(lines + LINE * t), infinity))
    if call.window:
        lead, near = load_integers(line(frame, LEAD)), load_integers(line(frame, NEAR))
        for t in range(min(keys, largest(near) - first)):
            seen = (lead > i32(first + t)) | (near <= i32(first + t))
            store(lines + LINE * t, where(seen, load(lines + LINE * t), infinity))
    if call.mask:
        mask = call.mask + place.batch * call.mask_b + place.head * call.mask_h
        for t in range(keys):
            key = mask + (first + t) * call.mask_j
            if call.mask_i == 0:
                if not booleans(key, (1,))[0]:
                    store(lines + LINE * t, infinity)
                continue
            lanes = floats(lines + LINE * t, (LANES,))
            for r in range(LANES):
                if not booleans(key + max(0, place.query + r) * call.mask_i, (1,))[0]:
                    lanes[r] = f32(-np.inf)


# -- recurrences: what is counted, or lost, from the query backwards ------------------------------


@compiled
def counting(call: Any, frame: Frame, end: int) -> bool:
    """Whether gates of the keys before ``end`` matter."""
    return call.recurrence >= DECAY or counts.counting(call, frame, end)


@compiled
def counted(call: Any, frame: Frame, end: int) -> bool:
    """Whether gates of keys before ``end`` mattered to the forward."""
    return call.recurrence >= DECAY or counts.counted(call, frame, end)


@compiled
def hide_block(
    call: Any, place: Place, frame: Frame, first: int, keys: int, counting: bool
) -> None:  # fmt: skip
    """What is not seen, of the block's logits and its gates'."""
    hide(call, place, frame, frame.s, first, keys)
    if counting and frame.a != frame.s and not call.hidden_gates:
        hide(call, place, frame, frame.a, first, keys)
    if call.recurrence >= DECAY:
        decays.hide_gates(call, place, frame, first, keys)


# -- forward -------------------------------------------------------------------------------------


@compiled
def enter_forward(call: Any, place: Place, frame: Frame) -> None:
    q = row(call.q, call.q_b, call.q_h, call.q_n, place.batch, place.head, max(0, place.query))
    read_rows(q, call.q_n, max(0, -place.query), call.d, frame.q, frame.q_beside)
    enter_r(call, place, frame)
    store(line(frame, M), spread(f32(-np.inf)))
    store(line(frame, TOTAL), spread(f32(0)))
    for column in range(0, LINE * call.dv, LINE):
        store(frame.sums + column, spread(f32(0)))
    enter_window(call, place, frame)
    forms.enter(call, place, frame)
    if call.table:
        counts.enter_forward(call, place, frame)
    elif call.recurrence >= DECAY:
        decays.enter_forward(call, frame)


@compiled
def enter_r(call: Any, place: Place, frame: Frame) -> None:
    if call.r:
        r = row(call.r, call.r_b, call.r_h, call.r_n, place.batch, place.head, max(0, place.query))
        read_rows(r, call.r_n, max(0, -place.query), call.dr, frame.r, frame.r_beside)


@compiled
def attend(
    call: Any, place: Place, frame: Frame, first: int, keys: int, counting: bool
) -> None:  # fmt: skip
    """Bias the block's logits, take their softmax and add the values that they weigh."""
    hide_block(call, place, frame, first, keys, counting)
    constant = spread(f32(0))
    if call.recurrence >= DECAY:
        top = decays.forward(call, frame, first, keys)
    elif counting:
        top = counts.forward(call, place, frame, keys)
    else:
        if call.table:
            constant = load(line(frame, LOW))
        top = spread(f32(-np.inf))
        for t in range(keys):
            x = load(frame.s + LINE * t)
            top = where(x > top, x, top)
        top = top + constant
    m = load(line(frame, M))
    if any_of(top > m + HEADROOM):
        m = moved(call, frame, m, top)
    sums, infinity = load(line(frame, TOTAL)), spread(f32(-np.inf))
    # rows that have seen no key yet have no m
    shift = constant - where(m > infinity, m, spread(f32(0)))
    for t in range(keys):
        x = exp(load(frame.s + LINE * t) + shift)
        store(frame.s + LINE * t, x)
        sums = sums + x
    store(line(frame, TOTAL), sums)
    v = row(call.v, call.v_b, call.v_h, call.v_n, place.batch, place.key_head, first)
    multiply(
        frame.sums, 4 * call.dv, frame.s, 4, LINE, v, call.v_n, LANES, call.dv, keys, True
    )  # fmt: skip


@compiled
def moved(call: Any, frame: Frame, m: Any, top: Any) -> Any:
    """m raised, and what was summed up with the old one rescaled."""
    higher = where(top > m, top, m)
    # where both are −∞ nothing has been summed up
    keep = where(higher > m, exp(m - higher), spread(f32(1)))
    store(line(frame, M), higher)
    store(line(frame, TOP), keep)
    store(line(frame, TOTAL), load(line(frame, TOTAL)) * keep)
    lanes = floats(line(frame, TOP), (LANES,))
    for r in range(LANES):
        scaled(frame.sums + 4 * call.dv * r, lanes[r], call.dv // LANES)
    return higher


@compiled
def leave_forward(call: Any, place: Place, frame: Frame) -> None:
    before, zero = -place.query, spread(f32(0))
    decays.leave_forward(call, place, frame)
    sums, m = load(line(frame, TOTAL)), load(line(frame, M))
    seen = sums > zero
    store(line(frame, INVERSE), where(seen, f32(1) / sums, zero))
    store(line(frame, M), where(seen, m, zero))
    write_line(line(frame, INVERSE), before, row_address(call.inverse, call, place))
    write_line(line(frame, M), before, row_address(call.m, call, place))
    inverse = floats(line(frame, INVERSE), (LANES,))
    for r in range(max(0, before), LANES):
        out = row(
            call.out, call.out_b, call.out_h, call.out_n, place.batch, place.head, place.query + r
        )  # fmt: skip
        for column in range(0, 4 * call.dv, LINE):
            store(out + column, load(frame.sums + 4 * call.dv * r + column) * inverse[r])
    if call.counted:
        which = (place.batch * call.h + place.head) * call.i + place.query
        counted = doubles(call.counted + 8 * which, (LANES,))
        start = integers(call.start + 4 * which, (LANES,))
        f = integers(line(frame, FLOOR), (LANES,))
        w = integers(line(frame, FRACTION), (LANES,))
        lost, rest = floats(line(frame, LOST), (LANES,)), floats(line(frame, LOST_REST), (LANES,))
        for r in range(max(0, before), LANES):
            counted[r] = np.float64(lost[r]) + np.float64(rest[r])
            if call.table:
                counted[r] = np.float64(f[r]) + np.float64(w[r]) / counts.ONE
            start[r] = max(i32(0), numbers(frame)[START])


@compiled
def forward_mixed(
    call: Any, task: int, scratch: int, vector: int, tile: Any, first: int, end: int
) -> None:  # fmt: skip
    """A block of keys and the same queries of all heads, whose gates are mixed.

    ``tile``: its first vector, and how many there are.
    """
    which, apart = vector - tile[0], tile[1]
    keys = min(end, place_of(call, task, vector, 0).seen) - first
    if keys <= 0:
        return
    counting = False
    for n in range(call.h):
        frame = frame_at(call, scratch, which + n * apart)
        counting |= counts.counting(call, frame, first + keys)
    for n in range(call.h):
        place, frame = place_of(call, task, vector, n), frame_at(call, scratch, which + n * apart)
        logits(call, place, frame, first, keys, counting)
    if counting:
        mix_heads(call, scratch, which, apart, keys)
    for n in range(call.h):
        place, frame = place_of(call, task, vector, n), frame_at(call, scratch, which + n * apart)
        attend(call, place, frame, first, keys, counts.counting(call, frame, first + keys))


@compiled
def forward_task(call: Any, task: int, scratch: int) -> None:
    each, vectors = call.vectors, vectors_of(call)
    for begin in range(task % call.chunks * each, vectors, each * call.chunks):
        some = min(each, vectors - begin)
        rows = some * call.heads
        for n in range(rows):
            enter_forward(
                call, place_of(call, task, begin + n % some, n // some), frame_at(call, scratch, n)
            )
        end = place_of(call, task, begin + some - 1, 0).seen
        hidden = hidden_of(call, scratch, some)
        while end > 0:
            if hidden[0] < end <= hidden[1]:
                end = hidden[0]
                continue
            first = max(0, end - KEYS)
            if hidden[0] < hidden[1] < end:
                first = max(first, hidden[1])
            if call.mix:
                for vector in range(begin, begin + some):
                    forward_mixed(call, task, scratch, vector, (begin, some), first, end)
            else:
                for n in range(rows):
                    place = place_of(call, task, begin + n % some, n // some)
                    frame = frame_at(call, scratch, n)
                    its, keys = seen_of(place, frame, first, end)
                    if keys > 0 and not decays.gone(call, frame, its + keys):
                        gates = counting(call, frame, its + keys)
                        logits(call, place, frame, its, keys, gates)
                        attend(call, place, frame, its, keys, gates)
            end = first
        for n in range(rows):
            leave_forward(
                call, place_of(call, task, begin + n % some, n // some), frame_at(call, scratch, n)
            )


# -- backward ------------------------------------------------------------------------------------


@compiled
def enter_backward(call: Any, place: Place, frame: Frame) -> None:
    before, token = max(0, -place.query), max(0, place.query)
    q = row(call.q, call.q_b, call.q_h, call.q_n, place.batch, place.head, token)
    read_rows(q, call.q_n, before, call.d, frame.q, frame.q_beside)
    out = row(call.out, call.out_b, call.out_h, call.out_n, place.batch, place.head, token)
    read_rows(out, call.out_n, before, call.dv, frame.dout, frame.sums)
    dout = row(call.dout, call.dout_b, call.dout_h, call.dout_n, place.batch, place.head, token)
    read_rows(dout, call.dout_n, before, call.dv, frame.dout, frame.dout_beside)
    # summed in the order of v dout: where a row attends to one key, its ds are exactly 0
    d = spread(f32(0))
    for column in range(0, LINE * call.dv, LINE):
        d = d + load(frame.sums + column) * load(frame.dout_beside + column)
    store(line(frame, D), d)
    read_line(row_address(call.m, call, place), before, line(frame, M))
    read_line(row_address(call.inverse, call, place), before, line(frame, INVERSE))
    for column in range(0, LINE * call.d, LINE):
        store(frame.sums + column, spread(f32(0)))
    enter_window(call, place, frame)
    if call.r:
        enter_r(call, place, frame)
        for column in range(0, LINE * call.dr, LINE):
            store(frame.r_sums + column, spread(f32(0)))
    forms.enter(call, place, frame)
    if call.counted:
        which = (place.batch * call.h + place.head) * call.i + place.query
        counted = doubles(call.counted + 8 * which, (LANES,))
        f = integers(line(frame, FLOOR), (LANES,))
        w = integers(line(frame, FRACTION), (LANES,))
        lost, rest = floats(line(frame, LOST), (LANES,)), floats(line(frame, LOST_REST), (LANES,))
        numbers(frame)[START] = integers(call.start + 4 * which, (LANES,))[LANES - 1]
        for r in range(LANES):
            count = counted[max(r, before)]
            if call.table:
                f[r] = i32(np.floor(count))
                w[r] = i32((count - np.floor(count)) * counts.ONE)
            else:
                lost[r] = count
                rest[r] = count - lost[r]
        if call.table:
            counts.enter_backward(call, place, frame)
        else:
            decays.enter_backward(call, place, frame)


@compiled
def differentiate(
    call: Any, place: Place, frame: Frame, first: int, keys: int, counting: bool
) -> None:  # fmt: skip
    """Turn the block's logits into prob and their gradients ``ds`` (and the gates', ``a``)."""
    v = row(call.v, call.v_b, call.v_h, call.v_n, place.batch, place.key_head, first)
    multiply(
        frame.ds, LINE, v, call.v_n, 4, frame.dout_beside, LINE, keys, LANES, call.dv, False
    )  # fmt: skip
    hide_block(call, place, frame, first, keys, counting)
    if call.table:
        counts.backward(call, place, frame, first, keys, counting)
        return
    if call.recurrence >= DECAY:
        decays.backward(call, frame, first, keys)
        return
    m, inverse, d = load(line(frame, M)), load(line(frame, INVERSE)), load(line(frame, D))
    for t in range(keys):
        prob = exp(load(frame.s + LINE * t) - m) * inverse
        store(frame.s + LINE * t, prob)
        store(frame.ds + LINE * t, prob * (load(frame.ds + LINE * t) - d))


@compiled
def gather_gradients(
    call: Any, place: Place, frame: Frame, first: int, keys: int, counting: bool
) -> None:  # fmt: skip
    """Add the block's share to the gradients of q, k, v, the gates' keys and the bias."""
    forms.back(call, place, frame, first, keys)
    dv = row(call.dv_, call.dv__b, call.dv__h, call.dv__n, place.batch, place.key_head, first)
    dv += place.chunk * call.dv__c
    multiply(
        dv, call.dv__n, frame.s, LINE, 4, frame.dout, 4 * call.dv, keys, call.dv, LANES, True
    )  # fmt: skip
    k = row(call.k, call.k_b, call.k_h, call.k_n, place.batch, place.key_head, first)
    dk = row(call.dk, call.dk_b, call.dk_h, call.dk_n, place.batch, place.key_head, first)
    dk += place.chunk * call.dk_c
    scaled(frame.ds, f32(call.scale), keys)
    through_keys(
        frame.sums, frame.q, call.d, frame.ds, keys, k, call.k_n, dk, call.dk_n
    )  # fmt: skip
    if counting and call.gate_k:
        k = row(
            call.gate_k, call.gate_k_b, call.gate_k_h, call.gate_k_n, place.batch, place.key_head,
            first,
        )  # fmt: skip
        dk = row(
            call.dgate_k, call.dgate_k_b, call.dgate_k_h, call.dgate_k_n, place.batch,
            place.key_head, first,
        )  # fmt: skip
        dk += place.chunk * call.dgate_k_c
        scaled(frame.a, f32(call.gate_scale), keys)
        through_keys(
            frame.r_sums, frame.r, call.dr, frame.a, keys, k, call.gate_k_n, dk, call.dgate_k_n
        )  # fmt: skip


@compiled
def through_keys(
    sums: int, rows: int, width: int, gradients: int, keys: int, k: int, k_step: int, dk: int,
    dk_step: int,
) -> None:  # fmt: skip
    """Add what gradients of products of these rows and keys give to the rows' and the keys' own."""
    multiply(sums, 4 * width, gradients, 4, LINE, k, k_step, LANES, width, keys, True)
    multiply(dk, dk_step, gradients, LINE, 4, rows, 4 * width, keys, width, LANES, True)


@compiled
def leave_backward(call: Any, place: Place, frame: Frame) -> None:
    if call.table:
        counts.leave_backward(call, place, frame, call.dtable + this_thread() * call.dtable_step)
    forms.leave(call, place, frame)
    for r in range(max(0, -place.query), LANES):
        dq = row(
            call.dq, call.dq_b, call.dq_h, call.dq_n, place.batch, place.head, place.query + r
        )  # fmt: skip
        for column in range(0, 4 * call.d, LINE):
            store(dq + column, load(frame.sums + 4 * call.d * r + column))
    if call.r:
        for r in range(max(0, -place.query), LANES):
            dr = row(
                call.dr_, call.dr__b, call.dr__h, call.dr__n, place.batch, place.head,
                place.query + r,
            )  # fmt: skip
            for column in range(0, 4 * call.dr, LINE):
                store(dr + column, load(frame.r_sums + 4 * call.dr * r + column))


@compiled
def backward_mixed(
    call: Any, task: int, scratch: int, vector: int, tile: Any, first: int, end: int
) -> None:  # fmt: skip
    """A block of keys and the same queries of all heads, whose gates are mixed.

    ``tile``: its first vector, and how many there are.
    """
    which, apart = vector - tile[0], tile[1]
    keys = min(end, place_of(call, task, vector, 0).seen) - first
    if keys <= 0:
        return
    counting = False
    for n in range(call.h):
        frame = frame_at(call, scratch, which + n * apart)
        counting |= counts.counted(call, frame, first + keys)
    for n in range(call.h):
        place, frame = place_of(call, task, vector, n), frame_at(call, scratch, which + n * apart)
        logits(call, place, frame, first, keys, counting)
    if counting:
        mix_heads(call, scratch, which, apart, keys)
    for n in range(call.h):
        place, frame = place_of(call, task, vector, n), frame_at(call, scratch, which + n * apart)
        differentiate(call, place, frame, first, keys, counting)
    if counting:
        unmix_heads(call, scratch, which, apart, keys)
    for n in range(call.h):
        place, frame = place_of(call, task, vector, n), frame_at(call, scratch, which + n * apart)
        gather_gradients(call, place, frame, first, keys, counting)


@compiled
def backward_task(call: Any, task: int, scratch: int) -> None:
    each, vectors = call.vectors, vectors_of(call)
    for begin in range(task % call.chunks * each, vectors, each * call.chunks):
        some = min(each, vectors - begin)
        rows = some * call.heads
        for n in range(rows):
            enter_backward(
                call, place_of(call, task, begin + n % some, n // some), frame_at(call, scratch, n)
            )
        limit = place_of(call, task, begin + some - 1, 0).seen
        hidden, first = hidden_of(call, scratch, some), 0
        while first < limit:
            if hidden[0] <= first < hidden[1]:
                first = hidden[1]
                continue
            end = min(limit, first + KEYS)
            if first < hidden[0] < hidden[1]:
                end = min(end, hidden[0])
            if call.mix:
                for vector in range(begin, begin + some):
                    backward_mixed(call, task, scratch, vector, (begin, some), first, end)
            else:
                for n in range(rows):
                    place = place_of(call, task, begin + n % some, n // some)
                    frame = frame_at(call, scratch, n)
                    its, keys = seen_of(place, frame, first, end)
                    if keys > 0 and not decays.was_gone(call, frame, its + keys):
                        gates = counted(call, frame, its + keys)
                        logits(call, place, frame, its, keys, gates)
                        differentiate(call, place, frame, its, keys, gates)
                        gather_gradients(call, place, frame, its, keys, gates)
            first = end
        for n in range(rows):
            leave_backward(
                call, place_of(call, task, begin + n % some, n // some), frame_at(call, scratch, n)
            )


# -- all tasks, shared out among the threads -----------------------------------------------------


@compiled
def scratch_of(call: Any) -> Any:
    """Where this thread's frames lie."""
    return call.scratch + this_thread() * call.heads * call.vectors * call.frame


@kernel
def forward(given: Any) -> None:
    call = call_at(given[0])
    for task in mine(call.tasks):
        forward_task(call, task, scratch_of(call))


@kernel
def backward(given: Any) -> None:
    call = call_at(given[0])
    for task in mine(call.tasks):
        backward_task(call, task, scratch_of(call))
