"""Schemes that x-transformers lacks, naively: torch operations that hold the logits, and autograd.

As the ``naive`` versions in flash-linear-attention go about it, against which its kernels are
tested. q, k and v are (b h n d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Work
from xcope.ops.carried import carried_attention

BLOCK = 64


def path(q: Tensor, k: Tensor, v: Tensor, moves: Tensor) -> Tensor:
    """PaTH block by block of keys; (h n n) tensors."""
    n, w, beta = q.shape[2], F.normalize(moves[..., :-1], dim=-1), moves[..., -1:]
    blocks = (*q.shape[:2], n // BLOCK, BLOCK)
    q, k, w, beta = (t.reshape(*blocks, t.shape[-1]) for t in (q, k, w, beta))
    unit = torch.eye(BLOCK)
    system = unit + (beta * w @ w.mT).tril(-1)
    T = torch.linalg.solve_triangular(system, unit.expand_as(system), upper=False)
    C, R = (q @ w.mT).tril() @ T, (beta * w @ k.mT).tril(-1)
    own = q @ k.mT - C @ R
    whole = torch.eye(q.shape[-1]) - w.mT @ T @ (beta * w)
    q, k = q - C @ (beta * w), k - (T @ R).mT @ w
    rows = []
    for a in range(n // BLOCK):
        carried, logits = q[:, :, a], [own[:, :, a]]
        for c in reversed(range(a)):
            logits.insert(0, carried @ k[:, :, c].mT)
            carried = carried @ whole[:, :, c]
        rows.append(F.pad(torch.cat(logits, dim=-1), (0, n - (a + 1) * BLOCK)))
    return _attended(torch.cat(rows, dim=2), v)


def wall(q: Tensor, k: Tensor, v: Tensor, moves: Tensor) -> Tensor:
    """Wall attention, all pairs and channels at once; (h n n d) tensors."""
    P = moves.cumsum(2)
    later = torch.ones(P.shape[2], P.shape[2], dtype=torch.bool).triu(1)
    between = (P[:, :, :, None] - P[:, :, None]).masked_fill(later[..., None], 0.0)
    return _attended((q[:, :, :, None] * k[:, :, None] * between.exp()).sum(-1), v)


def _attended(products: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(products.shape[-2:], dtype=torch.bool).triu(1)
    scale: float = v.shape[-1] ** -0.5
    return (products * scale).masked_fill(later, -torch.inf).softmax(-1) @ v


@dataclass(frozen=True)
class Naive:
    """A naive version of a scheme's attention.

    Args:
        attention: of q, k, v and moves.
        how: what it holds.
        most: tokens, at most, that fit into usual memory.
    """

    attention: Callable[..., Tensor]
    how: str
    most: int


NAIVE = {"path": Naive(path, "naive, n×n", 4096), "wall": Naive(wall, "naive, n×n×d", 512)}


def works(name: str, n: int, heads: int, dim_head: int) -> tuple[Work, Work]:
    """Forward and backward at n tokens: naively, and ours."""
    torch.manual_seed(0)
    q, k, v, w = (torch.randn(1, heads, n, dim_head) for _ in range(4))
    moves = torch.cat((w, 2 * torch.rand(1, heads, n, 1)), dim=-1) if name == "path" else -w.abs()
    given = [t.requires_grad_() for t in (q, k, v, moves)]

    def gradients(attention: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        out = attention(*given)
        return torch.autograd.grad(out, given, torch.ones_like(out))

    ours = partial(carried_attention, name)
    return partial(gradients, NAIVE[name].attention), partial(gradients, ours)
