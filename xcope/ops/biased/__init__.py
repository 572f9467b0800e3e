"""Attention with an index bias, in O(n) memory: one function, backends that agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.cpu.few import biased_attention_few
from xcope.ops.biased.gpu.flex import biased_attention_flex, refusal
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.operator import attend, repair
from xcope.ops.biased.reference import biased_attention_reference, definition, dense
from xcope.ops.compiled import takes
from xcope.ops.documents import one_by_one
from xcope.ops.fallback import warn
from xcope.ops.inputs import exporting, few_queries, require_backend
from xcope.ops.nonfinite import Tensors, all_finite, noticed
from xcope.ops.terms import ByDistance, Piecewise, Separable, Terms, flatten
from xcope.ops.transforms import by_definition, differentiable_again
from xcope.ops.windows import narrowed

Attention: TypeAlias = Callable[[BiasedInputs], Tensor]


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
    window: Tensor | int | None = None,
    sink: Tensor | None = None,
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
        bias: one of the forms of `xcope.ops.terms`, whose vectors get gradients, or None.
            Vectors over keys may be shorter than ``k``: the keys before them have bias 0.
        scale: of the logits, before the bias; ``d ** -0.5`` if None.
        mask: bool, True where a key may be attended: (b j), or 4 dimensions that broadcast to
            (b h i j). A row that sees no key gives zeros.
        causal: query i sees keys up to its own place.
        cu_seqlens: int32 or int64 (m + 1), where each of m documents that are packed in one row
            begins, and i: ascending, from 0, equal neighbours where a document is empty. Then b
            is 1 and i = j; a query sees keys of its own document only. On a GPU its values are
            not checked, and backend "tiled" waits for them.
        window: how many keys a query sees, itself the last of them; or two bounds for each query,
            int32 (1 2 i) or (b 2 i), see `xcope.ops.windows`. Other keys are not looked at.
        sink: (h), a logit of each head that takes its share of the softmax and leaves no value,
            see `xcope.ops.sinks`; zeros: softmax plus one.
        backend: "reference" holds (b h i j) tensors; "tiled" needs O(n d) memory; "flex" is
            PyTorch's FlexAttention, compiled, for CUDA; "auto" takes "flex" on CUDA where it can,
            "tiled" elsewhere, and PyTorch's own attention where there is no bias, nothing to mask
            and no compiled kernel.

    Under autocast q, k and v are cast as for matrix products. Second derivatives, forward-mode
    ones and the transforms of `torch.func` are answered by "reference" whatever the backend, in its
    memory.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    inputs = BiasedInputs.checked(
        q,
        k,
        v,
        bias,
        scale=scale,
        mask=mask,
        causal=causal,
        cu_seqlens=cu_seqlens,
        window=window,
        sink=sink,
    )
    if backend != "auto":
        require_backend(backend, ["auto", *BACKENDS], "biased attention")
    tensors = inputs.named().values()
    if by_definition(*tensors):
        backend = "reference"
    if backend == "auto":
        # what PyTorch's fast attention does, in O(n d) memory: it aligns no queries. The compiled
        # kernels are faster; an exported program is to run where they may be missing
        plain = exporting() or not takes(inputs.q)
        plain = plain and bias is None and mask is None and window is None and sink is None
        plain = plain and (not causal or q.shape[2] == k.shape[2])
        plain = plain and q.shape[-1] == v.shape[-1] and 0 not in k.shape
        if plain and cu_seqlens is None:
            return _plain(inputs)
        # for documents, few tokens too: the loop over them would wait for the device
        few = cu_seqlens is None and few_queries(*tensors)
        flex = not few and _flex_takes(inputs.q, inputs.k, inputs.v)
        if plain and not flex and not torch.compiler.is_compiling():
            return one_by_one(_plain, inputs)
        backend = "flex" if flex else "tiled"
    return BACKENDS[backend](inputs)


def biased_attention_tiled(inputs: BiasedInputs) -> Tensor:
    """Compute tile by tile: exact, O(n d) memory, on CPUs and any other device.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. Documents are
    computed one by one.
    """
    if inputs.cu_seqlens is not None:
        return one_by_one(biased_attention_tiled, inputs)
    few = few_queries(*inputs.named().values())
    if few and not torch.compiler.is_compiling():
        inputs = narrowed(inputs)
    dtype, mask, tensors = inputs.q.dtype, inputs.mask, inputs.named()
    for name, t in tensors.items():
        if t.is_floating_point():
            tensors[name] = t.to(torch.promote_types(dtype, torch.float32))
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    inputs = replace(inputs.with_named(tensors), mask=mask)
    if few:
        out = biased_attention_few(inputs)
        if noticed(out):

            def again(given: Tensors) -> tuple[Tensor]:
                return (biased_attention_few(inputs.with_named(given)),)

            (out,) = repair(inputs).forward(again)
    else:
        form, vectors = flatten(inputs.bias)
        q, k, v = inputs.q, inputs.k, inputs.v
        options = form, inputs.scale, inputs.causal
        out, *_ = attend(q, k, v, mask, inputs.window, inputs.sink, vectors, *options)
    return out.to(dtype)


def _flex_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether FlexAttention is the way; where on CUDA it is not, a warning says why, once."""
    if q.device.type != "cuda" or 0 in (q.numel(), k.numel()):
        return False
    reason = refusal(q, v)
    if reason is not None:
        warn("attention with an index bias, a mask, a window or documents", reason)
    return reason is None


def _plain(inputs: BiasedInputs) -> Tensor:
    """PyTorch's own attention; on CPUs, later keys stay hidden even if they are not finite."""
    grouped = inputs.q.shape[1] != inputs.k.shape[1]
    attend: Callable[..., Tensor] = partial(
        F.scaled_dot_product_attention,
        is_causal=inputs.causal,
        scale=inputs.scale,
        enable_gqa=grouped,
    )
    tensors = inputs.q, inputs.k, inputs.v
    out = attend(*tensors)
    if noticed(out):
        its = repair(inputs)
        rows = its.meeting() | ~attend(*its.finite().values()).isfinite().all(-1)
        if rows.any() or not all_finite(*tensors):  # else they are values of 0
            theirs = biased_attention_tiled(inputs)
            out = torch.where(rows[..., None], theirs, attend(*its.finite(rows).values()))
    return differentiable_again(out, partial(definition, inputs), *tensors)


BACKENDS: dict[str, Attention] = {
    "reference": biased_attention_reference,
    "tiled": biased_attention_tiled,
    "flex": biased_attention_flex,
}


__all__ = [
    "BACKENDS",
    "BiasedInputs",
    "ByDistance",
    "Piecewise",
    "Separable",
    "Terms",
    "biased_attention",
    "dense",
]
