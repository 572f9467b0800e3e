"""Packed documents: several in one row, which do not see each other.

``cu_seqlens`` says where they begin, as FlashAttention's functions for packed sequences have it:
(m + 1), int32 or int64, ascending from 0 to n. Document t is the tokens cu_seqlens[t] …
cu_seqlens[t + 1] − 1; where neighbours are equal, a document is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.inputs import number, require_device, shape
from xcope.ops.windows import of_tokens

Inputs = TypeVar("Inputs")

DTYPES = (torch.int32, torch.int64)


def check_documents(cu_seqlens: Tensor, q: Tensor, k: Tensor) -> None:
    """Raise a `FlagError` unless the documents fit q (1 h n d) and k (1 hk n d).

    The edges themselves are looked at on CPUs only: elsewhere that would wait for the device.
    """
    require_device("cu_seqlens", cu_seqlens, q)
    if q.shape[0] != 1:
        raise FlagError(
            "cu_seqlens",
            f"cu_seqlens is for documents in one row, but q {shape(q)} has {number(q.shape[0])}: "
            "flatten the batch into one row",
        )
    if q.shape[2] != k.shape[2]:
        raise FlagError(
            "cu_seqlens",
            f"cu_seqlens is for as many queries as keys, but q {shape(q)} has "
            f"{number(q.shape[2])} and k {shape(k)} has {number(k.shape[2])}",
        )
    check_edges(cu_seqlens, q.shape[2])


def check_edges(cu_seqlens: Tensor, n: int) -> None:
    """Raise a `FlagError` unless the documents fill n tokens."""
    if cu_seqlens.dtype not in DTYPES:
        wrong = f"must be int32 or int64, but is {cu_seqlens.dtype}"
        raise FlagError("cu_seqlens", f"cu_seqlens {wrong}")
    if cu_seqlens.ndim != 1 or not len(cu_seqlens):
        wrong = "must be (m + 1) for m documents: where each begins, and the number of tokens"
        raise FlagError("cu_seqlens", f"cu_seqlens {shape(cu_seqlens)} {wrong}")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    edges, wrong = cu_seqlens.tolist(), ""
    for before, after in pairwise(edges):
        if before > after:
            wrong = wrong or f"must ascend, but has {after} after {before}"
    if edges[0] != 0:
        wrong = f"must begin with 0, but does with {edges[0]}"
    elif edges[-1] != n:
        wrong = wrong or f"must end with the number of tokens, {n}, but does with {edges[-1]}"
    if wrong:
        raise FlagError("cu_seqlens", f"cu_seqlens {wrong}")


def document_of(cu_seqlens: Tensor, n: int) -> Tensor:
    """The index of each token's document: int64 (n), ascending. Does not wait for the device."""
    tokens = torch.arange(n, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True)


def lengths(cu_seqlens: Tensor) -> list[int]:
    """How many tokens documents have, without the empty ones; waits for the device."""
    return [n for n in cu_seqlens.diff().tolist() if n]


def within_documents(mask: Tensor | None, cu_seqlens: Tensor, n: int) -> Tensor:
    """The mask, (1 n) or one that broadcasts to (1 h n n), without keys of other documents."""
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
            if it has ``gate_k``, ``r`` or ``moves``, too, (1 h n c) or None, they are cut as keys
            are; a ``window`` is cut, too. What else it has, documents have in common.

    Returns:
        (1 h n dv).
    """
    given: Any = inputs
    mask, cu_seqlens = given.mask, given.cu_seqlens
    if torch.compiler.is_compiling():  # the graph may not depend on how long documents are
        mask = within_documents(mask, cu_seqlens, given.q.shape[2])
        return attention(replace(given, mask=mask, cu_seqlens=None))
    counts, parts = lengths(cu_seqlens) or [0], {}
    for name in ("q", "k", "v", "gate_k", "r", "moves"):
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
        if getattr(given, "window", None) is not None:
            its["window"] = of_tokens(given.window, tokens)
        outs.append(attention(replace(given, cu_seqlens=None, **its)))
    return torch.cat(outs, dim=2)


def _of_tokens(mask: Tensor, tokens: slice) -> Tensor:
    """The part of a mask, (1 n) or one that broadcasts to (1 h n n), that is of these tokens."""
    for dim in (1,) if mask.ndim == 2 else (2, 3):
        if mask.shape[dim] > 1:
            mask = mask.narrow(dim, tokens.start, tokens.stop - tokens.start)
    return mask
