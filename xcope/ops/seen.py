"""Products over the pairs of a query and a key that is seen, and no others.

In a product with a masked matrix the masked entries are 0, and 0 · NaN is NaN: what a query does
not see would reach it. Here it does not, in gradients of any order either; compiled graphs, whose
tracer knows no such operators, multiply as ever.

Shape notation: i queries, j keys, d dimensions, all of them after any others, which broadcast;
seen: bool, broadcasts to (… i j).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def scores(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """q_i·k_j where seen, 0 elsewhere: (… i j) from (… i d) and (… j d), equal but for i and j."""
    if torch.compiler.is_compiling():
        return (q @ k.mT).masked_fill(~seen, 0.0)
    return cast(Tensor, _Scores.apply(q, k, seen.expand(*q.shape[:-1], k.shape[-2])))  # type: ignore[no-untyped-call]


def weighted_sums(weights: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Σ_j w_ij v_j over the seen keys: (… i d) from (… i j) and (… j d)."""
    if torch.compiler.is_compiling():
        return weights.masked_fill(~seen, 0.0) @ values
    return cast(Tensor, _WeightedSums.apply(weights, values, seen.expand_as(weights)))  # type: ignore[no-untyped-call]


class _OfPairs(torch.autograd.Function):
    """Keeps its arguments for both directions of differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class _Scores(_OfPairs):
    @staticmethod
    def forward(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(~seen, 0.0)

    @staticmethod
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor, Tensor, None]:
        q, k, seen = ctx.saved_tensors
        return weighted_sums(ds, k, seen), weighted_sums(ds.mT, q, seen.mT), None

    @staticmethod
    def jvp(ctx: Any, dq: Tensor, dk: Tensor, _: None) -> Tensor:
        q, k, seen = ctx.saved_tensors
        return scores(dq, k, seen) + scores(q, dk, seen)


class _WeightedSums(_OfPairs):
    @staticmethod
    def forward(weights: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        weights = weights.masked_fill(~seen, 0.0)
        finite, infinite = values.isfinite(), values.isinf()
        sums = weights @ values.masked_fill(~finite, 0.0)
        # infinities of one sign are infinite, of both NaN, and so is one of no weight
        signs = values.sign().masked_fill(~infinite, 0.0)
        signed, all_of_them = weights @ signs, weights.abs() @ signs.abs()
        infinity = torch.where(signed.abs() == all_of_them, signed.sign() * torch.inf, torch.nan)
        sums = torch.where(all_of_them > 0, sums + infinity, sums)
        weightless = (seen & (weights == 0)).to(weights.dtype) @ infinite.to(weights.dtype)
        nan = seen.to(weights.dtype) @ values.isnan().to(weights.dtype)
        return sums.masked_fill(nan + weightless > 0, torch.nan)

    @staticmethod
    def backward(ctx: Any, dsums: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, values, seen = ctx.saved_tensors
        return scores(dsums, values, seen), weighted_sums(weights.mT, dsums, seen.mT), None

    @staticmethod
    def jvp(ctx: Any, dweights: Tensor, dvalues: Tensor, _: None) -> Tensor:
        weights, values, seen = ctx.saved_tensors
        return weighted_sums(dweights, values, seen) + weighted_sums(weights, dvalues, seen)
