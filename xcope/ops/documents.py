"""Packed documents: several in one row, which do not see each other.

``cu_seqlens`` says where they begin, as FlashAttention's functions for packed sequences have it:
(m + 1), int32 or int64, ascending from 0 to n. Document t is the tokens cu_seqlens[t] …
cu_seqlens[t + 1] − 1; equal neighbours: it is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from xcope.ops.inputs import number, require, require_device, shape

Inputs = TypeVar("Inputs")

DTYPES = (torch.int32, torch.int64)


def check_documents(cu_seqlens: Tensor, q: Tensor, k: Tensor) -> None:
    """Raise a `FlagError` unless the documents fit q (1 h n d) and k (1 hk n d).

    The edges themselves are looked at on CPUs only: elsewhere that would wait for the device.
    """
    require_device("cu_seqlens", cu_seqlens, q)
    require(
        q.shape[0] == 1,
        "cu_seqlens",
        f"cu_seqlens is for documents in one row, but q {shape(q)} has {number(q.shape[0])}: "
        "flatten the batch into one row",
    )
    require(
        q.shape[2] == k.shape[2],
        "cu_seqlens",
        f"cu_seqlens is for as many queries as keys, but q {shape(q)} has {number(q.shape[2])} "
        f"and k {shape(k)} has {number(k.shape[2])}",
    )
    check_edges(cu_seqlens, q.shape[2])


def check_edges(cu_seqlens: Tensor, n: int) -> None:
    """Raise a `FlagError` unless the documents fill n tokens."""
    require(
        cu_seqlens.dtype in DTYPES,
        "cu_seqlens",
        f"cu_seqlens must be int32 or int64, but is {cu_seqlens.dtype}",
    )
    require(
        cu_seqlens.ndim == 1 and len(cu_seqlens) >= 1,
        "cu_seqlens",
        f"cu_seqlens {shape(cu_seqlens)} must be (m + 1) for m documents: where each begins, "
        "and the number of tokens",
    )
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values(cu_seqlens.tolist(), n)


def _check_values(edges: list[int], n: int) -> None:
    require(edges[0] == 0, "cu_seqlens", f"cu_seqlens must begin with 0, but does with {edges[0]}")
    for before, after in pairwise(edges):
        require(
            before <= after,
            "cu_seqlens",
            f"cu_seqlens must ascend, but has {after} after {before}",
        )
    require(
        edges[-1] == n,
        "cu_seqlens",
        f"cu_seqlens must end with the number of tokens, {n}, but does with {edges[-1]}",
    )


def document_of(cu_seqlens: Tensor, n: int) -> Tensor:
    """Which document each of n tokens is of: int64 (n), ascending. Does not wait for the device."""
    tokens = torch.arange(n, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True)


def lengths(cu_seqlens: Tensor) -> list[int]:
    """Of the documents that have tokens; waits for the device."""
    return [n for n in cu_seqlens.diff().tolist() if n]


def within_documents(mask: Tensor | None, cu_seqlens: Tensor, n: int) -> Tensor:
    """The mask (1 n), or one that broadcasts to (1 h n n), where no key of another document is."""
    document = document_of(cu_seqlens, n)
    same = (document[:, None] == document)[None, None]
    if mask is None:
        return same
    return same & (mask[:, None, None, :] if mask.ndim == 2 else mask)


def one_by_one(attention: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """Attention of each document by itself, side by side: exact, without work across documents.

    Args:
        attention: takes inputs of one document.
        inputs: a dataclass with q (1 h n d), k, v, mask, bias and cu_seqlens, which is checked;
            if it has ``gate_k``, too, (1 hk n d) or None, that is cut as keys are. What else it
            has, documents have in common.

    Returns:
        (1 h n dv).
    """
    given: Any = inputs
    mask, cu_seqlens = given.mask, given.cu_seqlens
    if torch.compiler.is_compiling():  # the graph may not depend on how long documents are
        mask = within_documents(mask, cu_seqlens, given.q.shape[2])
        return attention(replace(given, mask=mask, cu_seqlens=None))
    counts, parts = lengths(cu_seqlens) or [0], {}
    for name in ("q", "k", "v", "gate_k"):
        whole = getattr(given, name, None)
        if whole is not None:  # split, unlike slices, has a backward that writes gradients once
            parts[name] = torch.split(whole, counts, dim=2)
    outs, first = [], 0
    for at, count in enumerate(counts):
        tokens = slice(first, first + count)
        first += count
        its: dict[str, Any] = {name: part[at] for name, part in parts.items()}
        its["mask"] = None if mask is None else _of_tokens(mask, tokens)
        its["bias"] = None if given.bias is None else given.bias.of_tokens(tokens)
        outs.append(attention(replace(given, cu_seqlens=None, **its)))
    return torch.cat(outs, dim=2)


def _of_tokens(mask: Tensor, tokens: slice) -> Tensor:
    """Of a mask (1 n) or one that broadcasts to (1 h n n)."""
    for dim in (1,) if mask.ndim == 2 else (2, 3):
        if mask.shape[dim] > 1:
            mask = mask.narrow(dim, tokens.start, tokens.stop - tokens.start)
    return mask
