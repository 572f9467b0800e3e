"""A block whose bias is b = row − key, a constant or nothing; compiled.

A constant is added where logits are exponentiated.
"""

from __future__ import annotations

from typing import Any

from xcope.ops.biased.cpu.unit import FAR, SEPARABLE, Block, Sums, Unit, Work
from xcope.ops.tiling.lines import hide, line, sum_of, top_of
from xcope.ops.tiling.numba_runtime import Array, compiled, exp, inlined


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
def add(block: Block, u: Unit, w: Work) -> None:
    """Biases the logits, but for the constant, and notes the largest."""
    row, key_of, top, separable = w.row, u.key, w.top, block.form == SEPARABLE
    for t in range(block.first, block.end):
        key = line(block.s, t, block.stride, block.rows)
        hide(key, t - block.diagonal)
        if separable:
            add_difference(key, row, key_of[t - block.free], top)
        else:
            top_of(key, top)


@compiled
def back(block: Block, u: Unit, w: Work, sums: Sums) -> None:
    """Turns logits into prob and dp into ds, and gathers the gradient of the bias.

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
