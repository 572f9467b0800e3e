"""CoPE attention and its kin: a function for each, backends that agree; `reference` defines."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.cope import gpu
from xcope.ops.cope.cpu.few import cope_attention_few
from xcope.ops.cope.inputs import MAX_TEMPERATURE, CopeInputs
from xcope.ops.cope.operator import WHAT, attend, repair
from xcope.ops.cope.reference import (
    cope_attention_reference,
    decays,
    log_shares,
    position_bias,
    positions,
)
from xcope.ops.documents import one_by_one
from xcope.ops.fallback import warn
from xcope.ops.inputs import few_queries, require_backend
from xcope.ops.nonfinite import Tensors, noticed
from xcope.ops.terms import Terms
from xcope.ops.transforms import by_definition
from xcope.ops.windows import narrowed


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
    window: Tensor | int | None = None,
    sink: Tensor | None = None,
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
        bias: of the logits, one of the forms of `xcope.ops.terms`: ALiBi's, say. Gates made
            of the logits are made of the biased ones; those of ``gate_k`` are not biased.
        cu_seqlens: int32 or int64 (m + 1), where each of m documents that are packed in one row
            begins, and i: ascending, from 0, equal neighbours where a document is empty. Then b
            is 1 and i = j; a query sees, and counts, keys of its own document only. On a GPU
            its values are not checked, and backend "tiled" waits for them.
        window: how many keys a query sees, itself the last of them; or two bounds for each query,
            int32 (1 2 i) or (b 2 i), see `xcope.ops.windows`. Other keys do not count, and are
            not looked at.
        sink: (h), a logit of each head that takes its share of the softmax and leaves no value,
            see `xcope.ops.sinks`; zeros: softmax plus one.
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
    inputs = CopeInputs.checked(
        q,
        k,
        v,
        pos_emb=pos_emb,
        scale=scale,
        mask=mask,
        causal=causal,
        soft_onehot=soft_onehot,
        soft_onehot_temp=soft_onehot_temp,
        gate_k=gate_k,
        head_mix=head_mix,
        bias=bias,
        cu_seqlens=cu_seqlens,
        window=window,
        sink=sink,
    )
    return _attend(inputs, backend, "CoPE")


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    r: Tensor | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    window: Tensor | int | None = None,
    sink: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention with relative positions that the query asks for (Shaw et al., arXiv 1803.02155).

    It is CoPE with all gates 1: the logit of the m-th visible key, counted back from the query from
    0 on, gets r·e[m], m clamped to the last entry. Where no key between is hidden, m is the
    distance i − j.

    Args:
        q: queries, (b h i d); shapes and all that is not told here as of `cope_attention`.
        k: keys, (b hk j d).
        v: values, (b hk j dv).
        pos_emb: the table, (p c), or (h p c) for one table per head.
        r: what asks, (b h i c); None: the queries, unscaled.
        scale: of the logits q·k; ``d ** -0.5`` if None.
        mask: True where a key may be attended. Masked keys do not count.
        causal: query i sees keys up to its own place; else it counts from the last key on.
        bias: of the logits.
        cu_seqlens: where documents begin that are packed in one row.
        window: see `cope_attention`; other keys do not count.
        sink: see `cope_attention`.
        backend: as of `cope_attention`; "triton" hands all to "tiled".

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    inputs = CopeInputs.checked(
        q,
        k,
        v,
        # positions begin with 1: the query's own key is counted
        pos_emb=F.pad(pos_emb, (0, 0, 1, 0)),
        r=r,
        scale=scale,
        gate_k=None,
        mask=mask,
        causal=causal,
        bias=bias,
        cu_seqlens=cu_seqlens,
        window=window,
        sink=sink,
        recurrence="distance",
    )
    return _attend(inputs, backend, "relative")


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_k: Tensor,
    *,
    gate_q: Tensor | None = None,
    rate: float = 1.0,
    own: bool = False,
    bare: int = 0,
    hidden_gates: bool = False,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    sink: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention whose logits decay by gates that each query has of its own.

    To the logit of key j the sum of log sigmoid(x_it) is added over the keys t from j on to the one
    before the query's own; x_it = gate_q_i·gate_k_t. In O(n) memory.

    Args:
        q: queries, (b h i d); shapes and all that is not told here as of `cope_attention`.
        k: keys, (b hk j d).
        v: values, (b hk j dv).
        gate_k: the gates' keys, (b h j c) or (b hk j c).
        gate_q: the gates' queries, (b h i c), scaled as they are to be; None: scale · q, c = d.
        rate: multiplies the logarithms.
        own: sum from the key after j to the query's own instead.
        bare: so many keys at the beginning have no gate, and do not decay.
        hidden_gates: masked keys have gates, as in x-transformers; else they have none.
        scale: of the logits q·k; ``d ** -0.5`` if None.
        mask: True where a key may be attended.
        causal: query i sees keys up to its own place. Keys after it never have a gate.
        bias: of the logits.
        cu_seqlens: where documents begin that are packed in one row.
        sink: see `cope_attention`.
        backend: as of `cope_attention`; "triton" hands all to "tiled".

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    inputs = CopeInputs.checked(
        q,
        k,
        v,
        r=gate_q,
        gate_k=gate_k,
        scale=scale,
        mask=mask,
        causal=causal,
        bias=bias,
        cu_seqlens=cu_seqlens,
        sink=sink,
        recurrence="decay",
        rate=rate,
        own=own,
        bare=bare,
        hidden_gates=hidden_gates,
    )
    return _attend(inputs, backend, "decay")


def stick_breaking_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    own: bool = False,
    remainder: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = True,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    window: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Stick-breaking attention (Tan et al., arXiv 2410.17980): no softmax.

    From the query backwards, each key breaks the share sigmoid(s_ij) off what the keys after it
    have left of a stick of length 1. In O(n) memory; where nothing is left keys are passed over.

    Args:
        q: queries, (b h i d); shapes and all that is not told here as of `cope_attention`.
        k: keys, (b hk j d).
        v: values, (b hk j dv).
        own: the query's own key breaks its share off, too (the authors' ``attend_current``).
        remainder: what is left goes to the query's own value; False: to nothing.
        scale: of the logits q·k; ``d ** -0.5`` if None.
        mask: True where a key may be attended. Masked keys break nothing off.
        causal: query i sees keys up to its own place; else the last key is the first to break.
        bias: of the logits.
        cu_seqlens: where documents begin that are packed in one row.
        window: see `cope_attention`; other keys break nothing off.
        backend: as of `cope_attention`; "triton" hands all to "tiled".

    Returns:
        (b h i dv), dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, before any work is done.
    """
    inputs = CopeInputs.checked(
        q,
        k,
        v,
        gate_k=None,
        scale=scale,
        mask=mask,
        causal=causal,
        bias=bias,
        cu_seqlens=cu_seqlens,
        window=window,
        recurrence="stick",
        own=own,
        remainder=remainder,
    )
    return _attend(inputs, backend, "stick-breaking")


def _attend(inputs: CopeInputs, backend: str, kind: str) -> Tensor:
    if backend != "auto":
        require_backend(backend, ["auto", *BACKENDS], kind)
    if by_definition(*inputs.named().values()):
        backend = "reference"
    if backend == "auto":
        device = inputs.q.device.type
        sharp = not inputs.soft_onehot or inputs.soft_onehot_temp <= MAX_TEMPERATURE
        tiled = device != "mps" and sharp
        backend = "reference" if not tiled else "triton" if device == "cuda" else "tiled"
    return BACKENDS[backend](inputs)


def cope_attention_tiled(inputs: CopeInputs) -> Tensor:
    """Tile by tile: exact, O(n (d + P)) memory, on CPUs and any other device.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. Documents are
    computed one by one. A soft one-hot is the interpolation with sigmoid((2w − 1)/τ) in place of
    w: further integers weigh less than e^(−1/τ), so τ must be small.

    Raises:
        FlagError: a soft one-hot with a temperature above ``MAX_TEMPERATURE``; an MPS device.
    """
    if inputs.soft_onehot:
        inputs.require_sharp()
    if inputs.q.device.type == "mps":
        raise FlagError(
            "backend",
            "backend='tiled' counts in float64, which MPS devices lack: use backend='reference'",
        )
    if inputs.cu_seqlens is not None:
        return one_by_one(cope_attention_tiled, inputs)
    few = few_queries(*inputs.named().values())
    if few and not torch.compiler.is_compiling():
        inputs = narrowed(inputs)
    dtype, inputs = inputs.q.dtype, inputs.widened()
    of_heads = inputs.gate_k is not None and inputs.gate_k.shape[1] != inputs.k.shape[1]
    if inputs.head_mix is not None or of_heads:
        inputs = inputs.with_all_heads()
    if few:
        out = cope_attention_few(inputs)
        if noticed(out):

            def again(given: Tensors) -> tuple[Tensor]:
                return (cope_attention_few(inputs.with_named(given)),)

            (out,) = repair(inputs).forward(again)
    else:
        out, *_ = attend(*inputs.flat(), "tiled")
    return out.to(dtype)


def cope_attention_triton(inputs: CopeInputs) -> Tensor:
    """By Triton's kernels, on CUDA.

    Products are of the inputs' dtype, sums in float32. What the kernels do not take is computed by
    the tiled backend, and a warning says so, once for each reason.

    Raises:
        FlagError: neither a CUDA device nor Triton's interpreter; a soft one-hot with a
            temperature above ``MAX_TEMPERATURE``.
    """
    if inputs.soft_onehot:
        inputs.require_sharp()
    device = inputs.q.device.type
    if device != "cuda" and not gpu.interpreted():
        raise FlagError(
            "backend",
            f"backend='triton' needs a CUDA device, but q is on {device!r}: use 'auto'",
        )
    reason = gpu.refusal(inputs)
    if reason is None:
        from xcope.ops.cope.gpu import launch  # noqa: PLC0415, Triton may be missing

        few = few_queries(*inputs.named().values()) and not torch.compiler.is_compiling()
        try:
            out, *_ = launch.forward(inputs) if few else attend(*inputs.flat(), "triton")
        except launch.OutOfResources as error:
            reason = f"no tiles fit: {error}"
        else:
            return out
    warn(WHAT[inputs.recurrence], reason)
    return cope_attention_tiled(inputs)


BACKENDS: dict[str, Callable[[CopeInputs], Tensor]] = {
    "reference": cope_attention_reference,
    "tiled": cope_attention_tiled,
    "triton": cope_attention_triton,
}

__all__ = [
    "BACKENDS",
    "CopeInputs",
    "cope_attention",
    "cope_attention_reference",
    "decay_attention",
    "decays",
    "log_shares",
    "position_bias",
    "positions",
    "relative_attention",
    "stick_breaking_attention",
]
