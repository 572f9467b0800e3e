"""The numbers of a page, small: the keys that a query sees, few bytes each, deflated.

A head's (i j) table is stored query after query, each with its keys from itself backwards, so that
a bias that follows from the distance repeats and takes no space.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

GATE_STEPS = 255
"""A gate, and a sum of gates, in steps of 1/255."""
BIAS_STEPS = 65534
"""From the smallest to the largest bias; the next number says that there is none."""

Floats = NDArray[np.float64]


def backwards(table: Tensor) -> list[Floats]:
    """Each query's keys from itself backwards.

    Args:
        table: (i j), the queries being the last i of the keys.
    """
    i, j = table.shape
    values = table.double().numpy()
    return [values[query, : j - i + query + 1][::-1] for query in range(i)]


def gates(table: Tensor) -> NDArray[np.uint8]:
    """Gates so rounded that their sums from the query backwards are right to half a step.

    A sum is a position before the table's end, so positions need no bytes of their own.
    """
    # not rint: halves must all go the same way, or a gate of 1 could become 256 steps
    sums = [np.floor(row.cumsum() * GATE_STEPS + 0.5) for row in backwards(table)]
    return np.concatenate([np.diff(row, prepend=0.0) for row in sums]).clip(0, 255).astype(np.uint8)


def attention(table: Tensor) -> NDArray[np.uint8]:
    """Square roots in steps of 1/255: small shares are told apart, too."""
    rows = np.concatenate(backwards(table))
    codes: NDArray[np.uint8] = np.rint(np.sqrt(rows.clip(0, 1)) * 255).astype(np.uint8)
    return codes


def bias(table: Tensor) -> tuple[NDArray[np.uint16], float, float]:
    """Steps from the smallest to the largest, and these two."""
    rows = np.concatenate(backwards(table))
    known = np.isfinite(rows)
    low, high = (float(rows[known].min()), float(rows[known].max())) if known.any() else (0.0, 0.0)
    steps = np.rint((np.where(known, rows, low) - low) / ((high - low) or 1.0) * BIAS_STEPS)
    return np.where(known, steps, BIAS_STEPS + 1).astype("<u2"), low, high


def saturated_from(table: Tensor) -> NDArray[np.uint16]:
    """How many of each query's keys, from itself backwards, are not yet at the last position.

    Args:
        table: bool (i j), whether the key is at the last position.
    """
    rows = backwards(table)
    ends = [int(row.argmax()) if row.any() else len(row) for row in rows]
    return np.array(ends, "<u2")


def packed(values: NDArray[np.generic]) -> str:
    """Deflated (without a header) and in base64."""
    squeeze = zlib.compressobj(wbits=-15)
    return base64.b64encode(squeeze.compress(values.tobytes()) + squeeze.flush()).decode()
