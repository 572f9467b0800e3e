"""CoPE attention on GPUs: the Triton kernels, and the tiled walk for what they cannot take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.biased.terms import Terms
from xcope.ops.cope.cpu import tiled
from xcope.ops.cope.cpu.tiled import check_temperature, cope_attention_tiled
from xcope.ops.documents import within_documents
from xcope.ops.fallback import INSTALLED, first_reason, warn

WIDEST_HEAD = 256
LONGEST_TABLE = 2**14  # positions: with more, too few bits are left for the fraction of a count
WHAT = "CoPE attention"


def cope_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    soft_onehot: bool = False,
    soft_onehot_temp: float = 0.05,
    head_mix: Tensor | None = None,
    bias: Terms | None = None,
    cu_seqlens: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Arguments as in `xcope.cope_attention`, already checked.

    Products are of the inputs' dtype, sums in float32. What the kernels do not take is computed by
    the tiled backend, and a warning says so, once for each reason.

    Raises:
        ValueError: neither a CUDA device nor Triton's interpreter; a soft one-hot with a
            temperature above ``MAX_TEMPERATURE``.
    """
    check_temperature(soft_onehot, soft_onehot_temp)
    if q.device.type != "cuda" and not interpreted():
        raise FlagError(
            "backend",
            f"backend='triton' needs a CUDA device, but q is on {q.device.type!r}: use 'auto'",
        )
    reason = refusal(q, v, pos_emb, others["scale"], head_mix, bias)
    if reason is None:
        from xcope.ops.cope.gpu import launch as triton  # noqa: PLC0415, Triton may be missing

        sharpness = 1 / soft_onehot_temp if soft_onehot else 0.0
        given: dict[str, Any] = {"sharpness": sharpness, "cu_seqlens": cu_seqlens} | others
        try:
            return triton.cope_attention_kernels(q, k, v, pos_emb, **given)
        except triton.OutOfResources as error:
            reason = f"no tiles fit: {error}"
    warn(WHAT, reason)
    options: dict[str, Any] = {"soft_onehot": soft_onehot, "soft_onehot_temp": soft_onehot_temp}
    options |= {"head_mix": head_mix, "bias": bias} | others
    return cope_attention_tiled(q, k, v, pos_emb, cu_seqlens=cu_seqlens, **options)


def refusal(
    q: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    scale: float,
    head_mix: Tensor | None,
    bias: Terms | None,
) -> str | None:
    """Why the kernels cannot take these inputs; None: they can."""
    widest, max_pos = max(q.shape[-1], v.shape[-1]), pos_emb.shape[-2]
    reasons = {
        f"the inputs are {q.dtype}": q.dtype == torch.float64,
        "the gates' heads are mixed (talking heads)": head_mix is not None,
        "the logits are biased": bias is not None,
        f"a head has {widest} dimensions, above {WIDEST_HEAD}": widest > WIDEST_HEAD,
        f"max_pos is {max_pos}, above {LONGEST_TABLE}": max_pos > LONGEST_TABLE,
        f"the logits' scale is {scale}, not above 0": scale <= 0,
    }
    return first_reason(q, reasons)


def interpreted() -> bool:
    """Whether Triton's kernels run on the CPU: ``TRITON_INTERPRET=1``."""
    if not INSTALLED:
        return False
    from xcope.ops.cope.gpu import tuning  # noqa: PLC0415, Triton may be missing

    return tuning.INTERPRETED


def backward_by_tiles(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, scale: float, causal: bool, sharpness: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of `xcope.ops.cope.operator.cope_backward`, the forward done anew in tiles."""
    if documents is not None:
        mask = within_documents(mask, documents, q.shape[2])
    tensors = (q, k, v, e, gate_k)
    wide: Any = [None if t is None else t.float() for t in tensors]
    rest: Any = (None, mask, None, [], "", scale, causal, sharpness)
    saved = tiled.run(*wide, *rest)
    backward: Any = tiled.run_backward
    grads = backward(dout.float(), saved, *wide, *rest, False)
    return [g if t is None else g.to(t.dtype) for g, t in zip(grads, (*tensors, None), strict=True)]
