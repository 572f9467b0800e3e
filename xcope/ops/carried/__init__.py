"""Attention whose queries are carried back over the tokens, token by token, to each key.

Two operators that differ in what a token does to the queries that pass it: reflections (PaTH) and
decays of each channel (Wall). One walk computes both in O(n d) memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.carried.few import carried_attention_few
from xcope.ops.carried.inputs import CarriedInputs
from xcope.ops.carried.operator import attend, repair
from xcope.ops.carried.reference import carried_attention_reference, moved
from xcope.ops.documents import one_by_one
from xcope.ops.fallback import warn
from xcope.ops.inputs import few_queries, require_backend, require_device, shape
from xcope.ops.nonfinite import Tensors, noticed
from xcope.ops.terms import Terms, flatten
from xcope.ops.transforms import by_definition

CHANNELS = {"path": 1, "wall": 0}
"""Kind → numbers of a token beside those of the channels."""


def path_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    sink: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention with s_ij = scale · q_iᵀ M_i … M_{j+1} k_j, M_t = I − β_t w_t w_tᵀ / |w_t|².

    PaTH (arXiv 2505.16381). Nothing grows where 0 ≤ β ≤ 2; a token with β = 0 does nothing. To
    |w_t|² 1e-6 is added, as in the authors' code.

    Args:
        q: see `carried_attention`, as all that is not said here.
        k: likewise.
        v: likewise.
        w: of each token, (b h j d), floating point; only its direction matters.
        beta: of each token, (b h j), floating point.
        scale: likewise.
        mask: likewise.
        bias: likewise.
        cu_seqlens: likewise.
        sink: likewise.
        backend: likewise.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    if beta.ndim != 3 or beta.shape != w.shape[:-1]:
        raise FlagError(
            "beta", f"beta {shape(beta)} must be (b h j) where w {shape(w)} is (b h j d)"
        )
    wide = torch.promote_types(torch.promote_types(w.dtype, beta.dtype), torch.float32)
    moves = torch.cat((w.to(wide), beta[..., None].to(wide)), dim=-1)
    return carried_attention(
        "path", q, k, v, moves, scale=scale, mask=mask, bias=bias, cu_seqlens=cu_seqlens,
        sink=sink, backend=backend,
    )  # fmt: skip


def wall_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    sink: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention with s_ij = scale · Σ_c q_ic k_jc exp(Σ_{t=j+1..i} g_tc).

    Wall attention (flash-linear-attention, 2026).

    Args:
        q: see `carried_attention`, as all that is not said here.
        k: likewise.
        v: likewise.
        log_decay: g of each token, (b h j d), floating point, natural logarithm, at most 0.
        scale: likewise.
        mask: likewise.
        bias: likewise.
        cu_seqlens: likewise.
        sink: likewise.
        backend: likewise.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    return carried_attention(
        "wall", q, k, v, log_decay, scale=scale, mask=mask, bias=bias, cu_seqlens=cu_seqlens,
        sink=sink, backend=backend,
    )  # fmt: skip


def carried_attention(
    kind: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    moves: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    sink: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention whose queries are carried back over the tokens to each key.

    Shape notation:
        b batch, h query heads, hk key heads (h divisible by hk; query head ``a`` uses key head
        ``a // (h / hk)``, as in `torch.nn.functional.scaled_dot_product_attention`), i queries,
        j keys (queries are aligned to the end of the keys), d head dimension, dv value dimension.

    Args:
        kind: ``path`` or ``wall``, see `path_attention` and `wall_attention`.
        q: queries, (b h i d); float32, float64, float16 or bfloat16.
        k: keys, (b hk j d), dtype of ``q``.
        v: values, (b hk j dv), dtype of ``q``.
        moves: of each token: (b h j d + 1), w and then β, or (b h j d), the logarithms of decays.
            float32 is best: what is rounded acts on all that lies before.
        scale: of the logits, before the bias; ``d ** -0.5`` if None.
        mask: bool, True where a key may be attended: (b j), or 4 dimensions that broadcast to
            (b h i j). Keys that are masked act on the queries that pass them as ever. A row that
            sees no key gives zeros.
        bias: of the logits, one of the forms of `xcope.ops.terms`, or None.
        cu_seqlens: int32 or int64 (m + 1), where each of m documents begins that are packed in one
            row, and i; see `xcope.ops.biased.biased_attention`.
        sink: (h), a logit of each head that takes its share of the softmax and leaves no value,
            see `xcope.ops.sinks`; zeros: softmax plus one.
        backend: "reference" holds (b h i j) tensors; "tiled", which "auto" takes, needs O(n d)
            memory.

    Second derivatives, forward-mode ones and the transforms of `torch.func` are answered by
    "reference" whatever the backend, in its memory.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    inputs = CarriedInputs.checked(
        kind, q, k, v, moves, scale=scale, mask=mask, bias=bias, cu_seqlens=cu_seqlens, sink=sink
    )
    _check_moves(inputs)
    if backend != "auto":
        require_backend(backend, ["auto", *BACKENDS], f"{kind} attention")
    empty = 0 in q.shape or 0 in k.shape
    if by_definition(*inputs.named().values()) or empty:
        backend = "reference"
    if backend == "auto":
        backend = "tiled"
    return BACKENDS[backend](inputs)


def _check_moves(inputs: CarriedInputs) -> None:
    q, k, moves = inputs.q, inputs.k, inputs.moves
    name = "w" if inputs.kind == "path" else "log_decay"
    wanted = (*q.shape[:2], k.shape[2], q.shape[3] + CHANNELS[inputs.kind])
    if moves.shape != wanted:
        raise FlagError(
            name,
            f"{name} must be (b h j d), of each token and each query head, for q {shape(q)} and "
            f"k {shape(k)}",
        )
    if not moves.is_floating_point():
        raise FlagError(name, f"{name} must be floating point, but is {moves.dtype}")
    require_device(name, moves, q)


def carried_attention_tiled(inputs: CarriedInputs) -> Tensor:
    """In groups and blocks: exact, O(n d) memory, on any device.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. Documents are
    computed one by one.
    """
    if inputs.cu_seqlens is not None:
        return one_by_one(carried_attention_tiled, inputs)
    dtype, device = inputs.q.dtype, inputs.q.device.type
    if device == "cuda":
        warn(f"{inputs.kind} attention", "it has no kernel of its own on a GPU")
    inputs = inputs.widened()
    if few_queries(*inputs.named().values()):
        out = carried_attention_few(inputs)
        if noticed(out):

            def again(given: Tensors) -> tuple[Tensor]:
                return (carried_attention_few(inputs.with_named(given)),)

            (out,) = repair(inputs).forward(again)
    else:
        form, vectors = flatten(inputs.bias)
        tensors: list[Any] = [inputs.q, inputs.k, inputs.v, inputs.moves, inputs.sink, inputs.mask]
        out, *_ = attend(*tensors, vectors, form, inputs.kind, inputs.scale)
    return out.to(dtype)


BACKENDS: dict[str, Callable[[CarriedInputs], Tensor]] = {
    "reference": carried_attention_reference,
    "tiled": carried_attention_tiled,
}


__all__ = [
    "BACKENDS",
    "CarriedInputs",
    "carried_attention",
    "carried_attention_reference",
    "moved",
    "path_attention",
    "wall_attention",
]
