"""Elementwise work of tiles in torch operations, as far as all tiled attention shares it.

A tile lies in memory row by row; here it is seen as (u R K).
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcope.ops.tiling.tiles import ForwardRows, Tile


def hide(s: Tensor, tile: Tile) -> None:
    """Set −∞ where a key (last dimension) comes after its query."""
    queries, keys = tile.i1 - tile.i0, s.shape[-1]
    if tile.diagonal < keys - 1:
        after = torch.ones(queries, keys, dtype=torch.bool, device=s.device).triu(tile.diagonal + 1)
        s.view(s.shape[0], -1, queries, keys).masked_fill_(after, -torch.inf)


def exponentiate(s: Tensor, rows: ForwardRows) -> None:
    """Turn biased logits y into exp(y − m) and update the rows, ``out`` rescaled to the new m."""
    m = torch.maximum(rows.m, s.amax(-1))
    finite = m.masked_fill(m == -torch.inf, 0.0)  # a row that has seen no key yet
    keep = (rows.m - finite).exp_()
    s.sub_(finite[..., None]).exp_()
    rows.m.copy_(m)
    rows.total.mul_(keep).add_(s.sum(-1))
    rows.out.mul_(keep[..., None])
