"""Blocks of consecutive tokens, and larger blocks made of them.

In a block its queries are carried back to where it begins, and its keys on to where it ends. So a
later query that has come to a block's end meets the block's keys as they are, and one product with
the block's own move carries it to the block's beginning. Nothing is ever divided by what was lost
on the way: exponents stay below 0, products of reflections do not grow.

Shape notation: U blocks (of all rows and heads), B tokens of a block, d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Block:
    """Blocks of a size, or the gradients of these tensors.

    Args:
        q: queries at the beginning of their block, (U B d); None: there are none.
        k: keys at the end of their block, (U B d).
        move: what carries a query over the whole block, a matrix (U d d) from the right, or factors
            (U d).
        products: among the block's own tokens, the query carried to the key, (U B B); any where the
            key is after the query, and None without queries.
    """

    q: Tensor | None
    k: Tensor
    move: Tensor
    products: Tensor | None


def of_queries(block: Block) -> tuple[Tensor, Tensor]:
    """The products and the queries of blocks that have queries."""
    if block.q is None or block.products is None:
        raise ValueError("these blocks have no queries")
    return block.products, block.q


def over(x: Tensor, move: Tensor) -> Tensor:
    """Rows x (U n d) carried back over blocks."""
    return x @ move if move.ndim == 3 else x * move[:, None]


def on(x: Tensor, move: Tensor) -> Tensor:
    """Keys x (U n d) carried on over blocks; also the gradient of what `over` was given."""
    return x @ move.mT if move.ndim == 3 else x * move[:, None]


def of_move(x: Tensor, dx: Tensor, move: Tensor) -> Tensor:
    """The gradient of a move by which `over` carried x, to what has the gradient dx."""
    return x.mT @ dx if move.ndim == 3 else (x * dx).sum(1)


def together(later: Tensor, earlier: Tensor) -> Tensor:
    """The move over two neighbouring blocks."""
    return later @ earlier if later.ndim == 3 else later * earlier


@dataclass
class Steps:
    """What `merge` met on its way, for its backward: by block, the rows before they were carried.

    Args:
        q: of the blocks after it.
        k: of the blocks before it.
        move: over the blocks before it.
    """

    q: list[Tensor] = field(default_factory=list)
    k: list[Tensor] = field(default_factory=list)
    move: list[Tensor] = field(default_factory=list)


def merge(blocks: Block, count: int) -> tuple[Block, Steps]:
    """Blocks of ``count`` neighbours each."""
    (U, B, d), steps = blocks.k.shape, Steps()
    U //= count
    small, moves = blocks.k.view(U, count, B, d), _apart(blocks.move, count)
    k, whole = small.reshape(U, count * B, d).clone(), moves[:, 0]
    for t in range(1, count):
        before = k[:, : t * B].clone()
        steps.k.append(before)
        steps.move.append(whole)
        k[:, : t * B] = on(before, moves[:, t])
        whole = together(moves[:, t], whole)
    if blocks.q is None or blocks.products is None:
        return Block(None, k, whole, None), steps
    q = blocks.q.reshape(U, count * B, d).clone()
    products = q.new_zeros(U, count * B, count * B)
    own = blocks.products.view(U, count, B, B)
    for c in reversed(range(count)):
        keys, later = slice(c * B, (c + 1) * B), slice((c + 1) * B, None)
        products[:, keys, keys] = own[:, c]
        if c < count - 1:
            rows = q[:, later].clone()
            steps.q.append(rows)
            products[:, later, keys] = rows @ small[:, c].mT
            q[:, later] = over(rows, moves[:, c])
    return Block(q, k, whole, products), steps


def merge_backward(blocks: Block, steps: Steps, grads: Block, count: int) -> Block:
    """Gradients of the blocks, from those of what they were merged to."""
    (U, B, d) = blocks.k.shape
    U //= count
    small, moves = blocks.k.view(U, count, B, d), _apart(blocks.move, count)
    dmoves, dsmall = torch.zeros_like(moves), torch.zeros_like(small)
    dq = downs = None
    if grads.q is not None and grads.products is not None:
        dq = grads.q.clone()
        downs = grads.products.new_empty(U, count, B, B)
        for c, rows in zip(range(count), (None, *steps.q)[::-1], strict=True):
            keys, later = slice(c * B, (c + 1) * B), slice((c + 1) * B, None)
            downs[:, c] = grads.products[:, keys, keys]
            if rows is not None:
                carried, dproducts = dq[:, later], grads.products[:, later, keys]
                dmoves[:, c] += of_move(rows, carried, moves[:, c])
                dsmall[:, c] += dproducts.mT @ rows
                dq[:, later] = on(carried, moves[:, c]) + dproducts @ small[:, c]
        dq, downs = dq.view(-1, B, d), downs.view(-1, B, B)
    dk, dwhole = grads.k.clone(), grads.move
    for t in reversed(range(1, count)):
        before, whole, carried = steps.k[t - 1], steps.move[t - 1], dk[:, : t * B]
        dmoves[:, t] += of_move(carried, before, moves[:, t])
        dk[:, : t * B] = over(carried, moves[:, t])
        if dwhole.ndim == 3:
            dmoves[:, t] += dwhole @ whole.mT
            dwhole = moves[:, t].mT @ dwhole
        else:
            dmoves[:, t] += dwhole * whole
            dwhole = moves[:, t] * dwhole
    dmoves[:, 0] += dwhole
    dsmall += dk.view(dsmall.shape)
    return Block(dq, dsmall.view(-1, B, d), dmoves.flatten(0, 1), downs)


def _apart(move: Tensor, count: int) -> Tensor:
    return move.view(-1, count, *move.shape[1:])
