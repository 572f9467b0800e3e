"""Attention with an index bias by PyTorch's FlexAttention: one compiled kernel, for CUDA.

The bias is a ``score_mod`` made of the same vectors, with gradients to them; causality is a block
mask, so that tiles behind the diagonal are skipped. Other masks are part of the ``score_mod``: a
block mask of theirs would have to be made anew for every batch.

On CPUs FlexAttention has no backward; it runs there, uncompiled and in (b h i j) memory, for
comparison alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from xcope.ops.biased.forms import cast_to, flatten, placed
from xcope.ops.biased.terms import ByDistance, Piecewise, Separable, Terms
from xcope.ops.inputs import differentiated, require

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

SMALLEST_DIM = 16  # of a head, that its kernels are made for
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def flex_takes(q: Tensor, v: Tensor) -> bool:
    """Whether FlexAttention's kernels do these inputs."""
    dims = min(q.shape[-1], v.shape[-1])
    return q.device.type == "cuda" and q.dtype in DTYPES and dims >= SMALLEST_DIM


def biased_attention_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Terms | None,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """Arguments as of `xcope.ops.biased.biased_attention`, already checked.

    Raises:
        FlagError: gradients are wanted on a CPU.
    """
    on_cuda = q.device.type == "cuda"
    require(
        on_cuda or not differentiated(q, k, v, *flatten(bias)[1]),
        "backend",
        f"backend='flex' has no backward on {q.device.type} devices: use backend='tiled'",
    )
    i, j = q.shape[2], k.shape[2]
    out: Tensor = (_compiled if on_cuda else _as_it_is)(flex_attention)(
        q,
        k,
        v,
        score_mod=score_mod(bias, mask, j),
        block_mask=causal_blocks(i, j, q.device) if causal else None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


@lru_cache(maxsize=16)
def causal_blocks(i: int, j: int, device: torch.device) -> BlockMask:
    """Which blocks queries that are aligned to the end of the keys see."""

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + (j - i)

    create = _compiled if device.type == "cuda" else _as_it_is
    blocks: BlockMask = create(create_block_mask)(sees, None, None, i, j, device=device)
    return blocks


def score_mod(terms: Terms | None, mask: Tensor | None, keys: int) -> ScoreMod | None:
    """What is done to a logit: biased, and −∞ where masked. None: nothing."""
    if terms is None and mask is None:
        return None
    bias = None if terms is None else _bias_of(cast_to(terms, torch.empty(0)))
    free = 0 if terms is None else keys - placed(terms)

    def modified(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if bias is not None:
            added = bias(b, h, query, (key - free).clamp(min=0))
            score = score + torch.where(key >= free, added, 0.0)
        if mask is not None:
            score = torch.where(_entry(mask, (b, h, query, key)), score, -torch.inf)
        return score

    return modified


def _entry(mask: Tensor, at: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Of a mask (b j) or one that broadcasts to (b h i j)."""
    if mask.ndim == 2:
        return mask[at[0], at[3]]
    return mask[tuple(n if size > 1 else n * 0 for n, size in zip(at, mask.shape, strict=True))]


def _bias_of(terms: Terms) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """b_ij at a row of the batch, head, query and key; the key counted among those with places."""
    if isinstance(terms, Separable):
        row, key_of = terms.row, terms.key

        def separable(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return _at(row, 3, b, h, i) - _at(key_of, 3, b, h, j)

        return separable
    if isinstance(terms, ByDistance):
        table = terms.table
        return lambda b, h, i, j: table[h, _distance(terms, b, i, j)]
    return _piecewise(terms)


def _piecewise(terms: Piecewise) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    steps = [2**n for n in reversed(range(len(terms.knots).bit_length()))]
    beyond = terms.knots.new_full((sum(steps) - len(terms.knots),), torch.inf)
    knots = torch.cat([terms.knots.detach(), beyond])
    slope, offset, warp, shrink = terms.slope, terms.offset, terms.warp, terms.shrink

    def bias(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        t = warp[_distance(terms, b, i, j)] * _at(shrink, 2, b, i)
        segment = torch.zeros_like(i)
        for step in steps:  # bisection: how many knots are below or at t
            segment = torch.where(t >= knots[segment + (step - 1)], segment + step, segment)
        return slope[h, segment] * t + offset[h, segment]

    return bias


def _distance(terms: ByDistance | Piecewise, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    table = terms.table if isinstance(terms, ByDistance) else terms.warp
    apart = _at(terms.q_pos, 2, b, i) - _at(terms.k_pos, 2, b, j)
    return apart.clamp(0, table.shape[-1] - 1)


def _at(vectors: Tensor, ndim: int, *at: Tensor) -> Tensor:
    """An entry; without that of the batch where the vectors have none."""
    return vectors[at if vectors.ndim == ndim else at[1:]]
