"""What attention functions share at their door: autocast, checks, who sees whom.

Shape notation as in `xcope.ops.cope.cope_attention`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError, did_you_mean, listing

FEW = 8  # queries of a head, at most, that take a path of their own where no gradient is wanted


def autocast(q: Tensor, *others: Tensor | None) -> list[Any]:
    """The tensors in autocast's dtype where it is on; float64 stays, as for torch's own ops."""
    device, tensors = q.device.type, [q, *others]
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    casts = (torch.float32, torch.float16, torch.bfloat16)
    return [t.to(dtype) if t is not None and t.dtype in casts else t for t in tensors]


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a gradient of any of them is wanted."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


# which torch 2.6 lacks
exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def few_queries(q: Tensor, *tensors: Tensor | None) -> bool:
    """Whether q (b h i d) takes the path for few queries, without gradients of q or the tensors.

    An exported program does not: it is for any number of queries.
    """
    return not exporting() and q.shape[2] <= FEW and not differentiated(q, *tensors)


def visible(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Which keys each query sees: a bool tensor that broadcasts to (b h i j).

    Queries are aligned to the end of the keys: query ``i`` of ``n`` stands at key
    ``j_total − n + i``.
    """
    i, j = q.shape[-2], k.shape[-2]
    seen = torch.ones(1, 1, i, j, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril(j - i)
    if mask is not None:
        seen = seen & (mask[:, None, None, :] if mask.ndim == 2 else mask)
    return seen


def shape(t: Tensor) -> str:
    """A tensor's shape in an error, ``(2 4 128 64)``.

    Without numbers while compiling, which would begin again for each length.
    """
    if torch.compiler.is_compiling():
        return "(…)"
    return "(" + " ".join(map(str, t.shape)) + ")"


def number(n: float) -> str:
    """A number in an error; as `shape`, not while compiling."""
    return "…" if torch.compiler.is_compiling() else str(n)


def require(ok: bool, flag: str, message: str) -> None:
    """Raise a `FlagError` unless ``ok``."""
    if not ok:
        raise FlagError(flag, message)


def require_backend(backend: str, backends: Iterable[str], kind: str) -> None:
    """Raise a `FlagError` unless there is such a backend of this kind of attention."""
    names = list(backends)
    if backend not in names:
        raise FlagError(
            "backend",
            f"backend={backend!r} is not a {kind} backend: choose 'auto' or one of "
            f"{listing(name for name in names if name != 'auto')}{did_you_mean(backend, names)}",
        )


def require_device(name: str, t: Tensor, q: Tensor) -> None:
    """Raise a `FlagError` unless a tensor is where q is."""
    if t.device != q.device:
        raise FlagError(name, f"{name} is on {t.device}, but q on {q.device}: they must agree")


def check_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Raise a `FlagError` unless q (b h i d), k (b hk j d), v (b hk j dv) and mask fit."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.ndim != 4:
            raise FlagError(name, f"{name} must be (b h n d), but has shape {shape(t)}")
        if not t.is_floating_point():
            raise FlagError(name, f"{name} must be floating point, but is {t.dtype} {shape(t)}")
        if t.dtype != q.dtype:
            raise FlagError(name, f"{name} is {t.dtype}, but q is {q.dtype}: they must agree")
        if t.device != q.device:
            require_device(name, t, q)
    (b, h, i, d), (bk, hk, j, dk) = q.shape, k.shape
    if bk != b:
        raise FlagError("k", f"k {shape(k)} and q {shape(q)} differ in batch size")
    if d == 0:
        raise FlagError("q", f"q {shape(q)} has heads of no dimension: it must be at least 1")
    if dk != d:
        raise FlagError("k", f"k {shape(k)} and q {shape(q)} differ in their last dimension")
    if hk == 0 or h % hk:
        raise FlagError("k", f"the {h} heads of q are no multiple of the {hk} heads of k")
    if v.shape[:3] != k.shape[:3]:
        raise FlagError("v", f"v {shape(v)} must have the batch, heads and length of k {shape(k)}")
    if mask is not None:
        _check_mask(mask, (b, h, i, j))
        require_device("mask", mask, q)


def _check_mask(mask: Tensor, whole: tuple[int, int, int, int]) -> None:
    b, h, i, j = whole
    if mask.dtype != torch.bool:
        raise FlagError(
            "mask",
            f"mask {shape(mask)} must be bool, True where a key may be attended, but is "
            f"{mask.dtype}: numbers that are added to the logits are a bias",
        )
    fits = (mask.ndim == 2 and mask.shape == (b, j)) or (
        mask.ndim == 4 and all(m in (1, n) for m, n in zip(mask.shape, whole, strict=True))
    )
    if not fits:
        raise FlagError(
            "mask",
            f"mask {shape(mask)} must be ({b} {j}), or have 4 dimensions that broadcast to "
            f"({b} {h} {i} {j})",
        )


# -- memory --------------------------------------------------------------------------------------
#
# What is computed in tiles lies as (b n h d), as the layers around attention have it: they take it
# without a copy.


def heads_last(like: Tensor, *shape: int) -> Tensor:
    """New memory (b h n d) that lies as (b n h d)."""
    b, h, n, d = shape
    return like.new_empty(b, n, h, d).transpose(1, 2)


def to_heads_last(t: Tensor) -> Tensor:
    """The same (b h n d), copied where it does not lie as (b n h d)."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)
