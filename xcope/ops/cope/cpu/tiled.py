"""CoPE attention tile by tile: exact, O(n (d + P)) memory, on CPUs and any other device.

The public function of this backend, and what it is behind `xcope.ops.cope.operator`. The algorithm
is in `xcope.ops.cope.cpu.walk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops import nonfinite
from xcope.ops.biased.cpu.eager import Bias
from xcope.ops.biased.terms import Terms, cast_to, first_part, flatten, names, unflatten
from xcope.ops.cope.cpu import eager, few, walk
from xcope.ops.cope.cpu.tiles import SPARE, Body, Call
from xcope.ops.cope.operator import Saved, cope
from xcope.ops.cope.reference import cope_attention_reference
from xcope.ops.documents import one_by_one
from xcope.ops.inputs import few_queries
from xcope.ops.nonfinite import Tensors, all_finite, noticed
from xcope.ops.tiling.tiles import by_key_head, compiled_or_none, sorted_by_key_head

# Of the soft one-hot: its two nearest integers alone are right to float32's precision, e^(−1/τ).
MAX_TEMPERATURE = 0.0625

TENSORS = ("q", "k", "v", "e", "gate_k", "head_mix")


def cope_attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Arguments as in `xcope.cope_attention`, already checked. Documents are computed one by one.

    float16 and bfloat16 are computed in float32 and rounded once, at the end. A soft one-hot is
    the interpolation with sigmoid((2w − 1)/τ) in place of w: further integers weigh less than
    e^(−1/τ), so τ must be small.

    Raises:
        ValueError: a soft one-hot with a temperature above ``MAX_TEMPERATURE``; an MPS device.
    """
    if cu_seqlens is None:
        return _of_a_row(q, k, v, pos_emb, **options)
    return one_by_one(_of_a_row, q, k, v, pos_emb, cu_seqlens=cu_seqlens, **options)


def check_temperature(soft_onehot: bool, soft_onehot_temp: float) -> None:
    """Raise a `FlagError` where the two nearest integers are not all that matters."""
    if soft_onehot and soft_onehot_temp > MAX_TEMPERATURE:
        raise FlagError(
            "soft_onehot_temp",
            f"soft_onehot_temp={soft_onehot_temp} is above {MAX_TEMPERATURE}, where positions "
            "further than the nearest two begin to matter: use backend='reference'",
        )


def _of_a_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    soft_onehot: bool = False,
    soft_onehot_temp: float = 0.05,
    gate_k: Tensor | None = None,
    head_mix: Tensor | None = None,
    bias: Terms | None = None,
) -> Tensor:
    """Of one document, or rows of a batch."""
    check_temperature(soft_onehot, soft_onehot_temp)
    if q.device.type == "mps":
        raise FlagError(
            "backend",
            "backend='tiled' counts in float64, which MPS devices lack: use backend='reference'",
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    dtype, groups = q.dtype, q.shape[1] // k.shape[1]
    q, k, v, pos_emb = (t.to(wide) for t in (q, k, v, pos_emb))
    gate_k = None if gate_k is None else gate_k.to(wide)
    if head_mix is not None:
        head_mix = head_mix.to(wide)
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        gate_k = None if gate_k is None else gate_k.repeat_interleave(groups, dim=1)
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    sharpness = 1 / soft_onehot_temp if soft_onehot else 0.0
    form, vectors = flatten(None if bias is None else cast_to(bias, q))
    tensors = (q, k, v, pos_emb, gate_k, head_mix)
    if few_queries(*tensors, *vectors):

        def attend(given: Tensors) -> tuple[Tensor]:
            terms = unflatten(form, [given[name] for name in names(form)])
            attention: Any = few.cope_attention_few
            its = [given.get(name) for name in TENSORS]
            return (attention(*its, mask, terms, scale, causal, sharpness),)

        call = call_by_definition(tensors, vectors, form, mask, scale, causal, sharpness)
        out, *_ = attend(call.tensors)
        if noticed(out):
            out, *_ = call.forward(attend)
        return out.to(dtype)
    out, *_ = cope(*tensors, mask, None, vectors, form, scale, causal, sharpness, "tiled")
    return cast(Tensor, out).to(dtype)


def body_for(dtype: torch.dtype, device: torch.device) -> Body:
    """The fastest body there is: compiled for float32 on CPUs that numba knows, else eager."""
    if device.type == "cpu" and dtype == torch.float32:
        return compiled_body() or cast(Body, eager)
    return cast(Body, eager)


@cache
def compiled_body() -> Body | None:
    """The body compiled by numba, or None where it cannot be had; says so once."""
    return cast(Body | None, compiled_or_none("xcope.ops.cope.cpu.numba", "CoPE"))


def _call(
    given: Tensors, form: str, mask: Tensor | None, scale: float, causal: bool, sharpness: float,
    of_vectors: bool = False,
) -> Call:  # fmt: skip
    """Sorts the tensors by key head; ``of_vectors``: gradients of the bias are gathered."""
    q, k, v, e = (given[name] for name in ("q", "k", "v", "e"))
    gate_k, head_mix = given.get("gate_k"), given.get("head_mix")
    size, vectors = (*q.shape[:3], k.shape[2]), [given[name] for name in names(form)]
    body, terms = body_for(q.dtype, q.device), unflatten(form, vectors)
    q, k, v, hidden = sorted_by_key_head(q, k, v, mask)
    return Call(
        q=q,
        k=k,
        v=v,
        hidden=hidden,
        e=F.pad(e, (0, 0, 0, SPARE)),
        max_pos=e.shape[-2],
        gate_k=None if gate_k is None else by_key_head(gate_k),
        head_mix=head_mix,
        bias=None if terms is None else Bias(terms, size, of_vectors),
        scale=scale,
        causal=causal,
        sharpness=sharpness,
        body=body,
        sizes=body,
        heads=size[1],
    )


def run(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
    scale: float, causal: bool, sharpness: float,
) -> Saved:  # fmt: skip
    """out (b h i dv), and for the backward m, 1 / Σ exp, count and start, (b h i).

    float32 or float64. Documents are run one by one, elsewhere. Rows that meet numbers that are not
    finite have NaN for 1 / Σ exp, see `xcope.ops.nonfinite`.
    """
    tensors = (q, k, v, e, gate_k, head_mix)
    options = (mask, scale, causal, sharpness)

    def tiled(given: Tensors) -> Saved:
        return _run(given, form, *options)

    call = call_by_definition(tensors, vectors, form, *options)
    if all_finite(*tensors, *vectors):
        saved = tiled(call.tensors)
        if all_finite(saved[0]) and not call.lost(*saved).any():
            return saved
    return cast(Saved, call.forward(tiled))


def call_by_definition(
    tensors: tuple[Tensor | None, ...], vectors: Sequence[Tensor], form: str, mask: Tensor | None,
    scale: float, causal: bool, sharpness: float,
) -> nonfinite.Call:  # fmt: skip
    """What `xcope.ops.nonfinite` is told of a call: q, k, v, e, gate_k, head_mix, and the rest."""
    whole = dict(zip(TENSORS, tensors, strict=True)) | dict(zip(names(form), vectors, strict=True))
    given = {name: t for name, t in whole.items() if t is not None}

    def definition(cut: Tensors, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        return cope_attention_reference(
            *(cut[name] for name in ("q", "k", "v", "e")),
            scale=scale,
            mask=mask,
            causal=causal,
            soft_onehot=sharpness > 0,
            soft_onehot_temp=1 / sharpness if sharpness > 0 else 1.0,
            gate_k=cut.get("gate_k"),
            head_mix=cut.get("head_mix"),
            bias=first_part(form, cut, queries, keys, given["k"].shape[2]),
        )

    everywhere = [name for name in ("head_mix",) if name in given] + ["e"] * (sharpness > 0)
    return nonfinite.Call(
        tensors=given,
        mask=mask,
        causal=causal,
        definition=definition,
        mixed="head_mix" in given,
        everywhere=tuple(everywhere),
    )


def _run(
    given: Tensors, form: str, mask: Tensor | None, scale: float, causal: bool, sharpness: float
) -> Saved:
    """`run` of numbers that are finite."""
    b, h, i, _ = given["q"].shape
    result = walk.forward(_call(given, form, mask, scale, causal, sharpness))
    return (
        result.out.view(b, h, i, given["v"].shape[-1]),
        result.m.view(b, h, i),
        result.inverse.view(b, h, i),
        result.count.view(b, h, i),
        result.start.view(b, h, i),
    )


def fake(q: Tensor, v: Tensor) -> Saved:
    """Of the shapes and dtypes that `run` gives."""
    b, h, i, _ = q.shape
    return (
        q.new_empty(b, h, i, v.shape[-1]),
        q.new_empty(b, h, i),
        q.new_empty(b, h, i),
        q.new_empty(b, h, i, dtype=torch.float64),
        q.new_empty(b, h, i, dtype=torch.int32),
    )


def run_backward(
    dout: Tensor, saved: Saved, q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None,
    head_mix: Tensor | None, mask: Tensor | None, documents: Tensor | None,
    vectors: Sequence[Tensor], form: str, scale: float, causal: bool, sharpness: float,
    of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """See `xcope.ops.cope.operator.cope_backward`."""
    options = (mask, scale, causal, sharpness)

    def tiled(dout: Tensor, saved: tuple[Tensor, ...], given: Tensors) -> Tensors:
        return _run_backward(dout, cast(Saved, saved), given, form, *options, of_vectors)

    call = call_by_definition((q, k, v, e, gate_k, head_mix), vectors, form, *options)
    if all_finite(dout, saved[2], *call.tensors.values()):
        grads = tiled(dout, saved, call.tensors)
    else:
        grads = call.backward(dout, saved, tiled)
    return [grads.get(name, q.new_empty(0)) for name in (*TENSORS, *names(form))]


def _run_backward(
    dout: Tensor, saved: Saved, given: Tensors, form: str, mask: Tensor | None, scale: float,
    causal: bool, sharpness: float, of_vectors: bool,
) -> Tensors:  # fmt: skip
    """`run_backward` of numbers that are finite, by name."""
    call = _call(given, form, mask, scale, causal, sharpness, of_vectors)
    rows = call.q.shape[:3]
    out, *others = saved
    result = walk.Result(out.view(*rows, given["v"].shape[-1]), *(t.view(rows) for t in others))
    grads = walk.backward(call, result, dout.contiguous().view(*rows, given["v"].shape[-1]))
    found = {} if call.bias is None else call.bias.gradients()
    found |= {"q": grads.q, "k": grads.k, "v": grads.v, "e": grads.e[..., :-SPARE, :].contiguous()}
    if grads.gate_k is not None:
        found["gate_k"] = grads.gate_k
    if grads.head_mix is not None:
        found["head_mix"] = grads.head_mix
    return {name: grad.view(given[name].shape) for name, grad in found.items()}
