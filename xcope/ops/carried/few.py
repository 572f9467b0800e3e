"""Attention of a few carried queries, without gradients: decoding with a cache.

Each query walks back over all keys, O(n d): for ``path`` in a compiled loop, where numba is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from xcope.ops.biased.reference import dense
from xcope.ops.carried import walk
from xcope.ops.carried.inputs import EPS, CarriedInputs
from xcope.ops.inputs import visible


def carried_attention_few(inputs: CarriedInputs) -> Tensor:
    """(b h i dv); tensors are float32 or float64, the mask has 4 dimensions.

    Not finite in rows that meet a number that is not, and maybe in others.
    """
    q, k = inputs.q, inputs.k
    if inputs.kind == "wall":
        products = _decayed(q, k, inputs.moves)
    else:
        loop = _loop() if q.device.type == "cpu" else None
        if loop is None:
            return walk.forward(inputs).out
        products = q.new_empty(*q.shape[:3], k.shape[2])
        rows = [t.detach().flatten(0, 1).numpy() for t in (q, k, inputs.moves, products)]
        loop(*rows, rows[0].dtype.type(EPS))
    s = products.mul_(inputs.scale)
    if inputs.bias is not None:
        s += dense(inputs.bias, k.shape[2])
    seen = visible(q, k, inputs.mask, causal=True)
    weights = s.masked_fill_(~seen, -torch.inf).softmax(-1)
    return weights.masked_fill_(~seen.any(-1, keepdim=True), 0.0) @ inputs.v


def _decayed(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """Products of decayed queries with keys, (b h i j); any where the key is later."""
    i, j = q.shape[2], k.shape[2]
    products = q.new_zeros(*q.shape[:3], j)
    for n in range(i):
        keys = j - i + n + 1
        left = torch.zeros_like(k[:, :, :keys])
        left[:, :, :-1] = g[:, :, 1:keys].flip(2).cumsum(2).flip(2)
        its = q[:, :, n, None] * k[:, :, :keys]
        products[:, :, n, :keys] = its.mul_(left.exp_()).sum(-1)
    return products


@cache
def _loop() -> Any:
    """The compiled loop, or None without numba."""
    try:
        import numba  # noqa: PLC0415, it may be missing
    except ImportError:
        return None
    options = {"fastmath": {"contract", "nsz", "arcp", "reassoc"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(_reflected)
    except RuntimeError:  # nowhere to keep what is compiled
        return numba.njit(**options)(_reflected)


def _reflected(q: Any, k: Any, moves: Any, products: Any, eps: Any) -> None:
    """Products of reflected queries (u i d) with keys (u j d), to ``products`` (u i j)."""
    heads, queries, d = q.shape
    keys = k.shape[1]
    for u in range(heads):
        for n in range(queries):
            carried = q[u, n].copy()
            place = keys - queries + n
            products[u, n, place + 1 :] = 0.0
            for t in range(place, -1, -1):
                product = along = q.dtype.type(0)
                norm = eps
                for c in range(d):
                    product += carried[c] * k[u, t, c]
                    along += carried[c] * moves[u, t, c]
                    norm += moves[u, t, c] * moves[u, t, c]
                products[u, n, t] = product
                along *= moves[u, t, d] / norm
                for c in range(d):
                    carried[c] -= along * moves[u, t, c]
