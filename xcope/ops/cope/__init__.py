"""CoPE attention: one function, backends that agree; `reference` holds the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xcope.ops.biased.terms import Terms, check_bias, flatten
from xcope.ops.cope.cpu.tiled import MAX_TEMPERATURE, cope_attention_tiled
from xcope.ops.cope.gpu.attention import cope_attention_triton
from xcope.ops.cope.reference import cope_attention_reference, position_bias, positions
from xcope.ops.documents import check_documents
from xcope.ops.inputs import (
    autocast,
    check_attention,
    number,
    require,
    require_backend,
    require_device,
    shape,
)
from xcope.ops.transforms import by_definition

BACKENDS: dict[str, Any] = {
    "reference": cope_attention_reference,
    "tiled": cope_attention_tiled,
    "triton": cope_attention_triton,
}


def cope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
    soft_onehot: bool = False,
    soft_onehot_temp: float = 0.05,
    gate_k: Tensor | None = None,
    head_mix: Tensor | None = None,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention with Contextual Position Encoding (arXiv 2405.18719).

    Each query counts, from itself backwards, the keys that its gates select; the count at a key
    is that key's position, clamped to ``max_pos − 1``; its embedding, dotted with the query, is
    added to the attention logit. See `xcope.ops.cope.reference` for the formulas.

    Shape notation:
        b batch, h query heads, hk key heads (h divisible by hk; query head ``a`` uses key head
        ``a // (h / hk)``, as in `torch.nn.functional.scaled_dot_product_attention`), i queries,
        j keys (queries are aligned to the end of the keys), d head dimension, dv value
        dimension, p ``max_pos``.

    Args:
        q: queries, (b h i d); float32, float64, float16 or bfloat16.
        k: keys, (b hk j d), dtype of ``q``.
        v: values, (b hk j dv), dtype of ``q``.
        pos_emb: the table, (p d), or (h p d) for one table per head.
        scale: of the logits; ``d ** -0.5`` if None. The table sees the unscaled query.
        mask: bool, True where a key may be attended: (b j), or 4 dimensions that broadcast to
            (b h i j). Masked keys do not count. A row that sees no key gives zeros.
        causal: query i sees keys up to its own place.
        soft_onehot: weigh all integer positions by ``softmax(−|p − m| / soft_onehot_temp)``
            instead of interpolating between the two nearest ones (paper, appendix).
        soft_onehot_temp: temperature of these weights, above 0.
        gate_k: keys that make the gates instead of ``k``, (b hk j d): keys of their own for
            "sep-keys" of the paper, ``v`` for "val-gates".
        head_mix: (h h), mixes the gates' logits across heads before the sigmoid
            (x-transformers' ``cope_talking_heads``); row: the head that receives.
        bias: of the logits, one of the forms of `xcope.ops.biased.terms`: ALiBi's, say. Gates made
            of the logits are made of the biased ones; those of ``gate_k`` are not biased.
        cu_seqlens: int32 or int64 (m + 1), where each of m documents that are packed in one row
            begins, and i: ascending, from 0, equal neighbours where a document is empty. Then b
            is 1 and i = j; a query sees, and counts, keys of its own document alone. On a GPU
            its values are not checked, and backend "tiled" waits for them.
        backend: "reference" holds (b h i j) tensors; "tiled" needs O(n (d + p)) memory; so does
            "triton", for CUDA, which hands to "tiled" what its kernels cannot take, and says so;
            "auto" takes "triton" on CUDA and "tiled" elsewhere, wherever they are exact and run.

    Under autocast q, k, v and gate_k are cast as for matrix products. Second derivatives,
    forward-mode ones and the transforms of `torch.func` are answered by "reference" whatever the
    backend, in its memory.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    q, k, v, gate_k = autocast(q, k, v, gate_k)
    check_attention(q, k, v, mask)
    _check(q, k, pos_emb, soft_onehot_temp, gate_k, head_mix)
    if bias is not None:
        check_bias(bias, q, k)
    if cu_seqlens is not None:
        check_documents(cu_seqlens, q, k)
    require_backend(backend, ["auto", *BACKENDS], "CoPE")
    if by_definition(q, k, v, pos_emb, gate_k, head_mix, *flatten(bias)[1]):
        backend = "reference"
    tiled = (not soft_onehot or soft_onehot_temp <= MAX_TEMPERATURE) and q.device.type != "mps"
    if backend == "auto":
        fastest = "triton" if q.device.type == "cuda" else "tiled"
        backend = fastest if tiled else "reference"
    out: Tensor = BACKENDS[backend](
        q,
        k,
        v,
        pos_emb,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        mask=mask,
        causal=causal,
        soft_onehot=soft_onehot,
        soft_onehot_temp=soft_onehot_temp,
        gate_k=gate_k,
        head_mix=head_mix,
        bias=bias,
        cu_seqlens=cu_seqlens,
    )
    return out


def _check(
    q: Tensor,
    k: Tensor,
    pos_emb: Tensor,
    soft_onehot_temp: float,
    gate_k: Tensor | None,
    head_mix: Tensor | None,
) -> None:
    h, d = q.shape[1], q.shape[3]
    require(
        pos_emb.ndim in (2, 3) and pos_emb.shape[-1] == d,
        "pos_emb",
        f"pos_emb {shape(pos_emb)} must be (p d) or (h p d) with d = {number(d)} as in q "
        f"{shape(q)}",
    )
    require(
        pos_emb.ndim == 2 or pos_emb.shape[0] == h,
        "pos_emb",
        f"pos_emb {shape(pos_emb)} has {number(pos_emb.shape[0])} tables, but q {shape(q)} "
        f"has {number(h)} heads",
    )
    require(
        pos_emb.shape[-2] >= 1,
        "pos_emb",
        f"pos_emb {shape(pos_emb)} has max_pos {number(pos_emb.shape[-2])}; it must be at least 1",
    )
    for name, t in {"pos_emb": pos_emb, "gate_k": gate_k, "head_mix": head_mix}.items():
        if t is not None:
            wrong = f"{name} must be floating point, but is {t.dtype}"
            require(t.is_floating_point(), name, wrong)
            require_device(name, t, q)
    require(
        soft_onehot_temp > 0,
        "soft_onehot_temp",
        f"soft_onehot_temp={number(soft_onehot_temp)} must be above 0",
    )
    if gate_k is not None:
        require(
            gate_k.shape == k.shape,
            "gate_k",
            f"gate_k {shape(gate_k)} must have the shape of k {shape(k)}",
        )
    if head_mix is not None:
        require(
            head_mix.shape == (h, h),
            "head_mix",
            f"head_mix {shape(head_mix)} must be ({number(h)} {number(h)})",
        )


__all__ = ["BACKENDS", "cope_attention", "cope_attention_reference", "position_bias", "positions"]
