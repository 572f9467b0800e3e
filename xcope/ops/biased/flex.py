"""Attention with an index bias by PyTorch's FlexAttention: one compiled kernel, for CUDA.

The bias is a ``score_mod`` made of the same vectors, with gradients to them. Causality and packed
documents are a block mask, so that tiles without a visible pair are skipped (see
`xcope.ops.biased.blocks`). Other masks are part of the ``score_mod``: a block mask of theirs would
have to be made anew for every batch.

The gradients of the vectors are gathered by atomic additions, one for each visible pair, in an
order that differs from run to run: so do their last digits.

On CPUs FlexAttention has no backward; it runs there, uncompiled and in (b h i j) memory, for
comparison alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from xcope.ops.biased.blocks import block_mask
from xcope.ops.biased.forms import flatten, named, placed, replaced, unflatten
from xcope.ops.biased.terms import ByDistance, Piecewise, Separable, Terms
from xcope.ops.inputs import differentiated, require

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Attention = Callable[..., Tensor]

DIMS = range(16, 257)  # of a head, that its kernels are made for
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (8, 0)  # compute capability: Ampere


def flex_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether FlexAttention's kernels do these inputs."""
    return (
        q.device.type == "cuda"
        and q.dtype in DTYPES
        and q.shape[-1] in DIMS
        and v.shape[-1] in DIMS
        and q.numel() > 0
        and k.numel() > 0
        and torch.cuda.get_device_capability(q.device) >= OLDEST
        and _triton()
    )


@cache
def _triton() -> bool:
    return find_spec("triton") is not None


def biased_attention_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Terms | None,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
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
    (h, i, d), (hk, j) = q.shape[1:], k.shape[1:3]
    form, vectors = flatten(None if bias is None else _prepared(bias))
    free = 0 if bias is None else j - placed(bias)
    kind = Kind(
        form=form,
        scale=scale,
        options=(("FORCE_USE_FLEX_ATTENTION", True),),
        inputs=(q.dtype, h, hk, d, v.shape[-1]),
        batched=tuple(t.ndim for t in vectors),
        masked=None if mask is None else tuple(n > 1 for n in mask.shape),
        blocked=(causal, cu_seqlens is not None, i == j),
        free=free > 0,
        differentiated=torch.is_grad_enabled(),
    )
    inline = not on_cuda or torch.compiler.is_compiling()
    attention = attention_of(kind) if inline else _compiled(kind)
    blocks = block_mask(i, j, causal, cu_seqlens, q.device)
    return attention(q, k, v, mask, vectors, _number(free, q) if free else None, blocks)


class Kind(NamedTuple):
    """What calls have in common that one function is compiled for: all but lengths and batch."""

    form: str
    scale: float
    options: tuple[tuple[str, Any], ...]
    inputs: tuple[Any, ...]
    batched: tuple[int, ...]
    masked: tuple[bool, ...] | None
    blocked: tuple[bool, ...]
    free: bool
    differentiated: bool


def attention_of(kind: Kind) -> Attention:
    """FlexAttention of this kind."""
    form, scale, options = kind.form, kind.scale, dict(kind.options)
    grouped = kind.inputs[1] != kind.inputs[2]

    def attention(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, vectors: list[Tensor],
        free: Tensor | None, blocks: BlockMask | None,
    ) -> Tensor:  # fmt: skip
        out: Tensor = flex_attention(
            q,
            k,
            v,
            score_mod=score_mod(unflatten(form, vectors), mask, free),
            block_mask=blocks,
            scale=scale,
            enable_gqa=grouped,
            kernel_options=options,
        )
        return out

    return attention


_numbers = count()


@cache
def _compiled(kind: Kind) -> Attention:
    """With code of its own: by code Dynamo counts how often it has compiled, and gives up after
    eight times; and what differs between two calls of one code it takes for dynamic.
    """
    attention = attention_of(kind)
    code = attention.__code__.replace(co_name=f"attention_{next(_numbers)}")
    own = FunctionType(code, attention.__globals__, closure=attention.__closure__)
    return torch.compile(own, fullgraph=True)


def _number(n: int, like: Tensor) -> Tensor:
    """As a tensor: for another int, Dynamo would compile anew."""
    return torch.full((), n, dtype=torch.int32, device=like.device)


def _prepared(terms: Terms) -> Terms:
    """Float32 and int32 vectors, no two of them the same tensor."""
    vectors = {}
    for name, t in named(terms).items():
        if t.is_floating_point():
            vectors[name] = t.detach().float() if name == "knots" else t.float().view(t.shape)
        else:
            vectors[name] = t.clamp(-(2**29), 2**29).int()
    return replaced(terms, vectors)


def score_mod(terms: Terms | None, mask: Tensor | None, free: Tensor | None) -> ScoreMod | None:
    """What is done to a logit: biased, and −∞ where masked. None: nothing.

    Args:
        terms: of the bias.
        mask: (b j), or 4 dimensions that broadcast to (b h i j).
        free: (), how many keys have no place; None: all have one.
    """
    if terms is None and mask is None:
        return None
    bias = None if terms is None else _bias_of(terms)

    def modified(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is not None:
            if free is None:
                score = score + bias(b, h, i, j)
            else:
                added = bias(b, h, i, (j - free).clamp(min=0))
                score = score + torch.where(j >= free, added, 0.0)
        if mask is not None:
            score = torch.where(_entry(mask, (b, h, i, j)), score, -torch.inf)
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
