"""CoPE attention: one function, backends that agree; `reference` holds the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError, did_you_mean, listing
from xcope.ops.cope.reference import cope_attention_reference, position_bias, positions
from xcope.ops.cope.tiled import MAX_TEMPERATURE, cope_attention_tiled

BACKENDS = {"reference": cope_attention_reference, "tiled": cope_attention_tiled}


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
        backend: "reference" holds (b h i j) tensors and is differentiable twice; "tiled" needs
            O(n (d + p)) memory; "auto" takes "tiled" wherever it is exact and runs.

    Under autocast q, k, v and gate_k are cast as for matrix products.

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    q, k, v, gate_k = _autocast(q, k, v, gate_k)
    _check(q, k, v, pos_emb, mask, soft_onehot_temp, gate_k, head_mix)
    tiled = (not soft_onehot or soft_onehot_temp <= MAX_TEMPERATURE) and q.device.type != "mps"
    return BACKENDS[_choose(backend, tiled)](
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
    )


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """The tensors in autocast's dtype where it is on; float64 stays, as for torch's own ops."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    casts = (torch.float32, torch.float16, torch.bfloat16)
    return [t.to(dtype) if t is not None and t.dtype in casts else t for t in tensors]


def _choose(backend: str, tiled: bool) -> str:
    if backend == "auto":
        return "tiled" if tiled else "reference"
    if backend not in BACKENDS:
        raise FlagError(
            "backend",
            f"backend={backend!r} is not a CoPE backend: choose 'auto' or one of "
            f"{listing(BACKENDS)}{did_you_mean(backend, ['auto', *BACKENDS])}",
        )
    return backend


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    mask: Tensor | None,
    soft_onehot_temp: float,
    gate_k: Tensor | None,
    head_mix: Tensor | None,
) -> None:
    def require(ok: bool, flag: str, message: str) -> None:
        if not ok:
            raise FlagError(flag, message)

    def shape(t: Tensor) -> str:
        return "(" + " ".join(map(str, t.shape)) + ")"

    for name, t in {"q": q, "k": k, "v": v}.items():
        require(t.ndim == 4, name, f"{name} must be (b h n d), but has shape {shape(t)}")
        require(
            t.is_floating_point(),
            name,
            f"{name} must be floating point, but is {t.dtype} {shape(t)}",
        )
        require(
            t.dtype == q.dtype, name, f"{name} is {t.dtype}, but q is {q.dtype}: they must agree"
        )
    (b, h, i, d), (bk, hk, j, dk) = q.shape, k.shape
    require(bk == b, "k", f"k {shape(k)} and q {shape(q)} differ in batch size")
    require(dk == d, "k", f"k {shape(k)} and q {shape(q)} differ in their last dimension")
    require(
        hk > 0 and h % hk == 0, "k", f"the {h} heads of q are no multiple of the {hk} heads of k"
    )
    require(
        v.shape[:3] == k.shape[:3],
        "v",
        f"v {shape(v)} must have the batch, heads and length of k {shape(k)}",
    )
    require(
        pos_emb.ndim in (2, 3) and pos_emb.shape[-1] == d,
        "pos_emb",
        f"pos_emb {shape(pos_emb)} must be (p d) or (h p d) with d = {d} as in q {shape(q)}",
    )
    require(
        pos_emb.ndim == 2 or pos_emb.shape[0] == h,
        "pos_emb",
        f"pos_emb {shape(pos_emb)} has {pos_emb.shape[0]} tables, but q {shape(q)} has {h} heads",
    )
    require(
        pos_emb.shape[-2] >= 1,
        "pos_emb",
        f"pos_emb {shape(pos_emb)} has max_pos {pos_emb.shape[-2]}; it must be at least 1",
    )
    require(
        pos_emb.is_floating_point(),
        "pos_emb",
        f"pos_emb must be floating point, but is {pos_emb.dtype}",
    )
    require(
        soft_onehot_temp > 0,
        "soft_onehot_temp",
        f"soft_onehot_temp={soft_onehot_temp} must be above 0",
    )
    if gate_k is not None:
        require(
            gate_k.shape == k.shape,
            "gate_k",
            f"gate_k {shape(gate_k)} must have the shape of k {shape(k)}",
        )
    if head_mix is not None:
        require(
            head_mix.shape == (h, h), "head_mix", f"head_mix {shape(head_mix)} must be ({h} {h})"
        )
    if mask is not None:
        require(
            mask.dtype == torch.bool,
            "mask",
            f"mask must be bool (True: attend), but is {mask.dtype}",
        )
        whole = (b, h, i, j)
        fits = (mask.ndim == 2 and mask.shape == (b, j)) or (
            mask.ndim == 4 and all(m in (1, n) for m, n in zip(mask.shape, whole, strict=True))
        )
        require(
            fits, "mask", f"mask {shape(mask)} must be ({b} {j}) or broadcast to ({b} {h} {i} {j})"
        )


__all__ = ["BACKENDS", "cope_attention", "position_bias", "positions"]
