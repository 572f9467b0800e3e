"""What compiled tiles of attention share: lines, the running softmax, how threads share work.

A tile lies in memory key by key, its queries side by side: a *line* is one key with all the rows
of a unit. A *unit* of work is some queries of one head. float32, on CPUs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcope.ops.tiling.numba_runtime import (
    Array,
    all_threads,
    compiled,
    exp,
    f32,
    floats,
    inlined,
    summing,
    this_thread,
)

BLOCK = 32  # keys between two looks at how far the softmax has come
HEADROOM = f32(30.0)  # how far above m a biased logit may be before m is moved
NOTHING = f32(1e-25)  # what is less is 0 when m has moved, see LOWEST in `numba_runtime`


@compiled
def mine(tasks: int) -> Any:
    """The tasks of this thread: neighbours, as in the matrix products before and after."""
    return range(
        tasks * this_thread() // all_threads(), tasks * (this_thread() + 1) // all_threads()
    )


@compiled
def unit_of(task: int, heads: int, queries: int, size: int) -> Any:
    """Key head, first row of the query head, and the unit's queries."""
    chunks = (queries + size - 1) // size
    key_head, rest = divmod(task, heads * chunks)
    head, chunk = divmod(rest, chunks)
    return key_head, head * queries, chunk * size, min(queries, (chunk + 1) * size)


@inlined
def line(tile: int, t: int, stride: int, rows: int) -> Array:
    """Key t of the unit whose first logit lies at the address ``tile``."""
    return floats(tile + 4 * t * stride, (rows,))


@inlined
def hide(key: Array, before: int) -> None:
    """Mask the first rows of a key: the queries that come before it."""
    for r in range(min(key.size, before)):
        key[r] = -np.inf


@inlined
def top_of(s: Array, top: Array) -> None:
    for r in range(s.size):
        top[r] = s[r] if s[r] > top[r] else top[r]


@summing
def sum_of(x: Array) -> Any:
    total = f32(0)
    for r in range(x.size):
        total += x[r]
    return total


@inlined
def exponentiate(s: Array, shift: Array, total: Array) -> None:
    for r in range(s.size):
        s[r] = exp(s[r] + shift[r])
        total[r] += s[r]


@inlined
def below(constant: Any, m: Any) -> Any:
    """What is added to logits before exp: constant − m; rows that have seen no key have no m."""
    return constant - m if m > -np.inf else constant


@inlined
def outgrown(m: Array, top: Array) -> bool:
    """Whether exp(top − m) could come near to overflowing, or m is not set yet."""
    over = False
    for r in range(m.size):
        over |= top[r] > m[r] + HEADROOM
    return over


@compiled
def move_to(
    top: Array, s: int, stride: int, first: int, end: int, m: Array, total: Array, out: Array
) -> None:
    """Raise m, and rescale what was exponentiated with the old one: keys first … end − 1."""
    keep = np.empty(m.size, np.float32)
    for r in range(m.size):
        higher = top[r] if top[r] > m[r] else m[r]
        keep[r] = exp(m[r] - higher) if higher > m[r] else f32(1)
        m[r] = higher
        total[r] *= keep[r]
        out[r] *= keep[r]
    for t in range(first, end):
        key = line(s, t, stride, m.size)
        for r in range(m.size):
            kept = key[r] * keep[r]
            key[r] = kept if kept > NOTHING else f32(0)
