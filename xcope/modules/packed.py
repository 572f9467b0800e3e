"""Packed documents: several in one row of a model, each as if it stood alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.documents import check_edges, document_of
from xcope.ops.inputs import require, shape

NOT_WITH = {
    "cache": "generate from each document alone",
    "mems": "give no memories",
    "seq_start_pos": "packed rows are not padded",
    "seq_pos_offset": "places begin at 0 in each document",
    "context": "cross attention does not know of documents",
    "flash_pack_seq_context_kwargs": "cross attention does not know of documents",
    "prepend_embeds": "put them into the row, as tokens of a document",
    "self_attn_additional_kv": "give no further keys",
}
"""Keywords of a call that say something else about the row."""


def documents_of(x: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """``cu_seqlens`` of a call, taken out of its keyword arguments; None: nothing is packed.

    x-transformers' spelling, ``flash_pack_seq_kwargs``, is understood, too. Places may not be
    given beside it, but an embedding of them may: ``pos`` of a floating dtype.

    Args:
        x: tokens (1 n) or embeddings (1 n dim).
        arguments: of the call.

    Raises:
        FlagError: edges that do not fit ``x``; an argument that does not go together with them.
    """
    cu_seqlens = arguments.pop("cu_seqlens", None)
    spelled = arguments.pop("flash_pack_seq_kwargs", None)
    if spelled is not None:
        require(
            cu_seqlens is None,
            "flash_pack_seq_kwargs",
            "flash_pack_seq_kwargs and cu_seqlens say the same: give one of them",
        )
        cu_seqlens = _of_upstream(spelled)
    if cu_seqlens is None:
        return None
    _check(cu_seqlens, x)
    for name, instead in NOT_WITH.items():
        given = arguments.get(name)
        if given is not None and not (isinstance(given, int) and given == 0):
            raise FlagError(name, f"{name} does not go together with cu_seqlens: {instead}")
    pos = arguments.get("pos")
    require(
        pos is None or pos.is_floating_point(),
        "pos",
        "pos does not go together with cu_seqlens: places begin anew in each document",
    )
    return cu_seqlens  # type: ignore[no-any-return]


def _check(cu_seqlens: Any, x: Tensor) -> None:
    if not isinstance(cu_seqlens, Tensor):
        raise FlagError(
            "cu_seqlens",
            f"cu_seqlens must be a tensor, int32 or int64, but is a {type(cu_seqlens).__name__}",
        )
    if x.shape[0] != 1:
        raise FlagError(
            "cu_seqlens",
            f"cu_seqlens is for documents in one row, but x {shape(x)} has {x.shape[0]}: flatten "
            "the batch into one row",
        )
    if cu_seqlens.device != x.device:
        raise FlagError(
            "cu_seqlens",
            f"cu_seqlens is on {cu_seqlens.device}, but x on {x.device}: they must agree",
        )
    check_edges(cu_seqlens, x.shape[1])


def _of_upstream(spelled: dict[str, Any]) -> Tensor:
    q, k = (spelled.get(f"cu_seqlens_{side}") for side in "qk")
    if q is None or k is None:
        lacking = "cu_seqlens_q" if q is None else "cu_seqlens_k"
        raise FlagError("flash_pack_seq_kwargs", f"flash_pack_seq_kwargs lacks {lacking}")
    require(
        q is k or _same(q, k),
        "flash_pack_seq_kwargs",
        "flash_pack_seq_kwargs must have the same cu_seqlens_q and cu_seqlens_k: queries and keys "
        "are the same tokens",
    )
    return q  # type: ignore[no-any-return]


def _same(q: Tensor, k: Tensor) -> bool:
    """Values are looked at on CPUs alone: elsewhere that would wait for the device."""
    if q.shape != k.shape:
        return False
    seen = q.device.type == k.device.type == "cpu" and not torch.compiler.is_compiling()
    return not seen or q.tolist() == k.tolist()


def packed_places(cu_seqlens: Tensor, n: int) -> Tensor:
    """Of each token in its document, int64 (n); does not wait for the device."""
    document = document_of(cu_seqlens, n).clamp(max=max(len(cu_seqlens) - 2, 0))
    return torch.arange(n, device=cu_seqlens.device) - cu_seqlens.long()[document]
