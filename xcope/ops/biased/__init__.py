"""Attention with an index bias, in O(n) memory: one function, backends that agree."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.check import check_bias
from xcope.ops.biased.cpu.tiled import biased_attention_tiled, call_by_definition
from xcope.ops.biased.forms import flatten, unflatten
from xcope.ops.biased.gpu.flex import biased_attention_flex, refusal
from xcope.ops.biased.reference import biased_attention_reference, dense
from xcope.ops.biased.terms import ByDistance, Piecewise, Separable, Terms
from xcope.ops.documents import check_documents, one_by_one
from xcope.ops.fallback import warn
from xcope.ops.inputs import (
    autocast,
    check_attention,
    few_queries,
    require_backend,
)
from xcope.ops.nonfinite import all_finite, noticed
from xcope.ops.transforms import by_definition, differentiable_again

BACKENDS = {
    "reference": biased_attention_reference,
    "tiled": biased_attention_tiled,
    "flex": biased_attention_flex,
}


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Terms | None,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention whose logits have a bias that follows from the places of query and key.

    Shape notation:
        b batch, h query heads, hk key heads (h divisible by hk; query head ``a`` uses key head
        ``a // (h / hk)``, as in `torch.nn.functional.scaled_dot_product_attention`), i queries,
        j keys (queries are aligned to the end of the keys), d head dimension, dv value dimension.

    Args:
        q: queries, (b h i d); float32, float64, float16 or bfloat16.
        k: keys, (b hk j d), dtype of ``q``.
        v: values, (b hk j dv), dtype of ``q``.
        bias: one of the forms of `xcope.ops.biased.terms`, whose vectors get gradients, or None.
            Vectors over keys may be shorter than ``k``: the keys before them have bias 0.
        scale: of the logits, before the bias; ``d ** -0.5`` if None.
        mask: bool, True where a key may be attended: (b j), or 4 dimensions that broadcast to
            (b h i j). A row that sees no key gives zeros.
        causal: query i sees keys up to its own place.
        cu_seqlens: int32 or int64 (m + 1), where each of m documents that are packed in one row
            begins, and i: ascending, from 0, equal neighbours where a document is empty. Then b
            is 1 and i = j; a query sees keys of its own document alone. On a GPU its values are
            not checked, and backend "tiled" waits for them.
        backend: "reference" holds (b h i j) tensors; "tiled" needs O(n d) memory; "flex" is
            PyTorch's FlexAttention, compiled, for CUDA; "auto" takes "flex" on CUDA where it can,
            "tiled" elsewhere, and PyTorch's own attention where there is no bias and nothing to
            mask.

    Under autocast q, k and v are cast as for matrix products. Second derivatives, forward-mode
    ones and the transforms of `torch.func` are answered by "reference" whatever the backend, in its
    memory.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    q, k, v = autocast(q, k, v)
    check_attention(q, k, v, mask)
    if bias is not None:
        check_bias(bias, q, k)
    if cu_seqlens is not None:
        check_documents(cu_seqlens, q, k)
    require_backend(backend, ["auto", *BACKENDS], "biased attention")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    given: dict[str, Any] = {"mask": mask, "bias": bias, "scale": scale, "causal": causal}
    vectors = flatten(bias)[1]
    if by_definition(q, k, v, *vectors):
        backend = "reference"
    if backend == "auto":
        plain = bias is None and _is_plain(q, k, v, mask, causal)
        if plain and cu_seqlens is None:
            return _plain(q, k, v, **given)
        # for documents, few tokens too: the loop over them would wait for the device
        few = cu_seqlens is None and few_queries(q, k, v, *vectors)
        flex = not few and _flex_takes(q, k, v)
        if cu_seqlens is not None and plain and not flex and not torch.compiler.is_compiling():
            return one_by_one(_plain, q, k, v, cu_seqlens=cu_seqlens, **given)
        backend = "flex" if flex else "tiled"
    given["cu_seqlens"] = cu_seqlens
    out = BACKENDS[backend](q, k, v, **given)
    return _again(out, q, k, v, **given) if backend == "flex" else out


def _flex_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether FlexAttention is the way; where on CUDA it is not, a warning says why, once."""
    if q.device.type != "cuda" or 0 in (q.numel(), k.numel()):
        return False
    reason = refusal(q, v)
    if reason is not None:
        warn("attention with an index bias, a mask or documents", reason)
    return reason is None


def _plain(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, **_: None) -> Tensor:
    """PyTorch's own attention; on CPUs, without the later keys that are not finite."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped
        )

    out = attend(q, k, v)
    if noticed(out):
        call = call_by_definition((q, k, v), [], "", None, scale, causal)
        rows = call.meeting() | ~attend(**call.finite()).isfinite().all(-1)
        if rows.any() or not all_finite(q, k, v):  # else they are values of 0
            theirs = biased_attention_tiled(q, k, v, None, causal=causal, scale=scale)
            out = torch.where(rows[..., None], theirs, attend(**call.finite(rows)))
    return _again(out, q, k, v, None, causal=causal, scale=scale)


def _again(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Terms | None, **given: Any
) -> Tensor:
    """``out``, with second derivatives, which PyTorch's operators lack."""
    form, vectors = flatten(bias)

    def definition(q: Tensor, k: Tensor, v: Tensor, *vectors: Tensor) -> Tensor:
        return biased_attention_reference(q, k, v, unflatten(form, vectors), **given)

    return differentiable_again(out, definition, q, k, v, *vectors)


def _is_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
    """Whether PyTorch's fast attention does it, in O(n d) memory: it aligns no queries."""
    aligned = not causal or q.shape[2] == k.shape[2]
    return mask is None and aligned and q.shape[-1] == v.shape[-1] and 0 not in k.shape


__all__ = [
    "BACKENDS",
    "ByDistance",
    "Piecewise",
    "Separable",
    "Terms",
    "biased_attention",
    "dense",
]
