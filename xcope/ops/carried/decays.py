"""The smallest blocks of ``wall``, M_t = diag(e^{g_t}), forward and backward.

Within a block, exponents are sums of g over the tokens between a key and its query, never
differences of larger sums: so nothing overflows, and nothing is lost to what decayed before.

Shape notation as in `xcope.ops.carried.blocks`; moves g (U B d), at most 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xcope.ops.carried.blocks import Block, of_queries

SIZE = 8
"""Tokens of a block."""


class Kept(NamedTuple):
    """For the backward."""

    q: Tensor | None
    k: Tensor
    left: Tensor | None  # of channels between key and query, (U B B d); 0 if the key is later
    left_of_q: Tensor | None  # from the beginning to the query, (U B d)
    left_of_k: Tensor  # from the key to the end
    move: Tensor


def forward(q: Tensor | None, k: Tensor, moves: Tensor) -> tuple[Block, Kept]:
    """Blocks of tokens; q may be missing."""
    after = _sum_after(moves)
    left_of_k, move = after.exp(), moves.sum(1).exp()
    if q is None:
        kept = Kept(None, k, None, None, left_of_k, move)
        return Block(None, k * left_of_k, move, None), kept
    U, B, d = k.shape
    # row i: Σ_{t=j+1..i}, from row i − 1
    exponents = moves.new_empty(U, B, B, d)
    for i in range(B):
        if i:
            torch.add(exponents[:, i - 1, :i], moves[:, i, None], out=exponents[:, i, :i])
        exponents[:, i, i] = 0.0
        exponents[:, i, i + 1 :] = -torch.inf
    left = exponents.exp_()
    products = q.new_empty(U, B, B)
    for j in range(B):  # all at once would hold one more of the size of `left`
        torch.sum((left[:, :, j] * k[:, j, None]).mul_(q), dim=-1, out=products[:, :, j])
    left_of_q = moves.cumsum(1).exp()
    kept = Kept(q, k, left, left_of_q, left_of_k, move)
    return Block(q * left_of_q, k * left_of_k, move, products), kept


def backward(kept: Kept, grads: Block) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of q, k and the moves; those of the products are 0 above the diagonal."""
    q, k, left, left_of_q, left_of_k, move = kept
    dk = grads.k * left_of_k
    along_k = dk * k
    # a token weighs on what is before it, and on the whole
    dmoves = along_k.cumsum(1).sub_(along_k).add_((grads.move * move)[:, None])
    dq = None
    if q is not None and left is not None and left_of_q is not None:
        dproducts, dq = of_queries(grads)
        weighed = left.mul_(dproducts[..., None])  # which is not needed any more
        own_q, own_k = torch.zeros_like(q), torch.empty_like(k)
        for j in range(k.shape[1]):
            own_q.addcmul_(weighed[:, :, j], k[:, j, None])
            torch.sum(weighed[:, :, j] * q, dim=1, out=own_k[:, j])
        dq = torch.addcmul(own_q, dq, left_of_q)
        dmoves += (dq * q - own_k * k).flip(1).cumsum(1).flip(1)
        dk = dk + own_k
    return dq, dk, dmoves


def _sum_after(moves: Tensor) -> Tensor:
    """Σ of the tokens after each."""
    after = torch.zeros_like(moves)
    after[:, :-1] = moves[:, 1:].flip(1).cumsum(1).flip(1)
    return after
