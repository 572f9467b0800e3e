"""Time against the share of saturated tiles: past saturation a tile is plain flash attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from xcope.benchmark.cope.workloads import Scale, forward_backward, ours, sdpa, tensors
from xcope.benchmark.measure import ratio
from xcope.ops.cope import CopeInputs
from xcope.ops.cope.cpu import walk


@dataclass(frozen=True)
class Saturation:
    """How much of attention was saturated, and what it cost.

    Args:
        share: of the (query, key) pairs, those in the saturated part.
        ratio: forward and backward over SDPA's.
    """

    max_pos: int
    share: float
    ratio: float

    def __str__(self) -> str:
        return f"max_pos {self.max_pos}: {self.share:.1%} saturated, {self.ratio:.2f} × SDPA"


def saturation(scale: Scale) -> Iterator[Saturation]:
    """Tables from short to as long as the input, gates about 0.5."""
    for max_pos in scale.max_positions:
        given = tensors(scale.n, max_pos)
        mine, plain = (partial(forward_backward, f, given) for f in (ours, sdpa))
        share = saturated_share(*(t.detach() for t in given))
        yield Saturation(max_pos, share, ratio(mine, plain, scale.slow))


def saturated_share(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> float:
    """Share of the causal (query, key) pairs that the operator treated as saturated."""
    scale = q.shape[-1] ** -0.5
    start = walk.forward(CopeInputs(q=q, k=k, v=v, pos_emb=table, scale=scale)).start
    seen = torch.arange(1, q.shape[2] + 1)  # by each query
    return float(torch.minimum(start, seen).sum() / seen.expand_as(start).sum())
