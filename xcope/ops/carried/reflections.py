"""The smallest blocks of ``path``, M_t = I − β_t w_t w_tᵀ / (|w_t|² + ε), forward and backward.

With W the block's w as rows, D = diag(β / (|w|² + ε)), G = W Wᵀ below its diagonal, the moves over
the whole block are one product (the UT transform; Yang et al., arXiv 2406.06484):

    M_last … M_first = I − Wᵀ T W,   T = (I + D G)⁻¹ D

A query i meets the tokens up to itself, a key j those after it: with Z = Q Wᵀ on and below the
diagonal, R = W Kᵀ below it, C = Z T and Y = T R

    q_i M_i … M_first = (Q − C W)_i,   M_last … M_{j+1} k_j = (K − Yᵀ W)_j
    q_iᵀ M_i … M_{j+1} k_j = (Q Kᵀ − C R)_ij

With unit w, entries of T stay below 4 where 0 ≤ β ≤ 2: products of such M_t do not grow.

Shape notation as in `xcope.ops.carried.blocks`; moves (U B d + 1), w and then β.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xcope.ops.carried.blocks import Block, of_queries
from xcope.ops.carried.inputs import EPS

SIZE = 64
"""Tokens of a block."""


class Kept(NamedTuple):
    """For the backward."""

    q: Tensor | None
    k: Tensor
    w: Tensor
    beta: Tensor  # (U B)
    norm: Tensor  # |w|² + ε, (U B)
    inverse: Tensor  # (I + D G)⁻¹
    G: Tensor
    T: Tensor
    R: Tensor
    Y: Tensor
    C: Tensor | None
    Z: Tensor | None


def forward(q: Tensor | None, k: Tensor, moves: Tensor) -> tuple[Block, Kept]:
    """Blocks of tokens; q may be missing."""
    w, beta = moves[..., :-1].contiguous(), moves[..., -1]
    norm = w.square().sum(-1).add_(EPS)
    strength = beta / norm
    U, B, _ = w.shape
    G = (w @ w.mT).tril_(-1)
    unit = torch.eye(B, dtype=w.dtype, device=w.device)
    system = (G * strength[..., None]).add_(unit)
    inverse = torch.linalg.solve_triangular(
        system, unit.expand(U, B, B), upper=False, unitriangular=True
    )
    T = inverse * strength[:, None]
    R = (w @ k.mT).tril_(-1)
    Y = T @ R
    move = (w.mT @ (T @ w)).neg_()
    move.diagonal(dim1=1, dim2=2).add_(1.0)
    carried_k = torch.baddbmm(k, Y.mT, w, alpha=-1)
    if q is None:
        kept = Kept(None, k, w, beta, norm, inverse, G, T, R, Y, None, None)
        return Block(None, carried_k, move, None), kept
    Z = (q @ w.mT).tril_()
    C = Z @ T
    products = torch.baddbmm(q @ k.mT, C, R, alpha=-1)
    block = Block(torch.baddbmm(q, C, w, alpha=-1), carried_k, move, products)
    return block, Kept(q, k, w, beta, norm, inverse, G, T, R, Y, C, Z)


def backward(kept: Kept, grads: Block) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of q, k and the moves; those of the products are 0 above the diagonal."""
    q, k, w, beta, norm, inverse, G, T, R, Y, C, Z = kept
    dY = (w @ grads.k.mT).neg_()
    TW, dTW = T @ w, (w @ grads.move).neg_()
    dw = torch.baddbmm(T.mT @ dTW, TW, grads.move.mT, alpha=-1, beta=1)
    dw.baddbmm_(Y, grads.k, alpha=-1)
    dT = torch.baddbmm(dTW @ w.mT, dY, R.mT)
    dR, dk, dq = T.mT @ dY, grads.k, None
    if q is not None and C is not None and Z is not None:
        dproducts, dq = of_queries(grads)
        dC = (dproducts @ R.mT).add_(dq @ w.mT).neg_()
        dR.baddbmm_(C.mT, dproducts, alpha=-1)
        dw.baddbmm_(C.mT, dq, alpha=-1)
        dk = torch.baddbmm(dk, dproducts.mT, q)
        dq = torch.baddbmm(dq, dproducts, k)
        dT.baddbmm_(Z.mT, dC)
        dZ = (dC @ T.mT).tril_()
        dq.baddbmm_(dZ, w)
        dw.baddbmm_(dZ.mT, q)
    dR.tril_(-1)
    dw.baddbmm_(dR, k)
    dk = torch.baddbmm(dk, dR.mT, w)
    E = inverse.mT @ dT
    dsystem = (E @ T.mT).neg_().tril_(-1)
    strength = beta / norm
    dstrength = E.diagonal(dim1=1, dim2=2) + (dsystem * G).sum(-1)
    dG = dsystem * strength[..., None]
    dw.baddbmm_(dG + dG.mT, w)
    dbeta = (dstrength / norm)[..., None]
    dw.addcmul_(w, dbeta * strength[..., None], value=-2)
    return dq, dk, torch.cat((dw, dbeta), dim=-1)
