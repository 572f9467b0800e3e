"""Attention of a few carried queries, without gradients: decoding with a cache.

Each query walks back over all keys, O(n d), in a compiled loop where numba is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xcope.ops.biased.reference import dense
from xcope.ops.carried import walk
from xcope.ops.carried.inputs import EPS, CarriedInputs
from xcope.ops.inputs import visible
from xcope.ops.sinks import sunk, with_column


def carried_attention_few(inputs: CarriedInputs) -> Tensor:
    """(b h i dv); tensors are float32 or float64, the mask has 4 dimensions.

    Not finite in rows that meet a number that is not, and maybe in others.
    """
    q, k, moves = inputs.q, inputs.k, inputs.moves
    loop = _compiled(_reflected if inputs.kind == "path" else _decayed)
    if loop is None or q.device.type != "cpu":
        return sunk(walk.forward(inputs), inputs.sink)[0]
    s = q.new_empty(*q.shape[:3], k.shape[2])
    moves = moves if inputs.kind == "path" else moves.exp()
    rows = [t.detach().flatten(0, 1).numpy() for t in (q, k, moves, s)]
    loop(*rows, rows[0].dtype.type(EPS))
    s.mul_(inputs.scale)
    if inputs.bias is not None:
        s += dense(inputs.bias, k.shape[2])
    seen = visible(q, k, inputs.mask, causal=True)
    weights = with_column(s.masked_fill_(~seen, -torch.inf), inputs.sink)
    return weights.masked_fill_(~seen.any(-1, keepdim=True), 0.0) @ inputs.v


@cache
def _compiled(loop: Callable[..., None]) -> Any:
    """The loop compiled, or None without numba."""
    try:
        import numba  # noqa: PLC0415, it may be missing
    except ImportError:
        return None
    options = {"fastmath": {"contract", "nsz", "arcp", "reassoc"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # nowhere to keep what is compiled
        return numba.njit(**options)(loop)


# Products of queries (u i d), carried back over the tokens, with keys (u j d), to ``products``
# (u i j), 0 where the key is later. ``moves``: w and then β, or decays.


def _reflected(q: Any, k: Any, moves: Any, products: Any, eps: Any) -> None:
    heads, queries, d = q.shape
    keys = k.shape[1]
    for u in range(heads):
        for n in range(queries):
            carried = q[u, n].copy()
            place = keys - queries + n
            products[u, n, place + 1 :] = 0.0
            for t in range(place, -1, -1):
                product = along = carried[0] * 0
                norm = eps
                for c in range(d):
                    product += carried[c] * k[u, t, c]
                    along += carried[c] * moves[u, t, c]
                    norm += moves[u, t, c] * moves[u, t, c]
                products[u, n, t] = product
                along *= moves[u, t, d] / norm
                for c in range(d):
                    carried[c] -= along * moves[u, t, c]


def _decayed(q: Any, k: Any, moves: Any, products: Any, eps: Any) -> None:
    heads, queries, d = q.shape
    keys = k.shape[1]
    for u in range(heads):
        for n in range(queries):
            carried = q[u, n].copy()
            place = keys - queries + n
            products[u, n, place + 1 :] = 0.0
            for t in range(place, -1, -1):
                product = carried[0] * 0
                for c in range(d):
                    product += carried[c] * k[u, t, c]
                    carried[c] *= moves[u, t, c]
                products[u, n, t] = product
