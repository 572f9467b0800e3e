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
    "context": "cross attention does not know of documents",
    "prepend_embeds": "put them into the row, as tokens of a document",
    "self_attn_additional_kv": "give no further keys",
}
"""Keywords of a call that say something else about the row."""


def documents_of(x: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """``cu_seqlens`` of a call, taken out of its keyword arguments; None: nothing is packed.

    x-transformers' spelling, ``flash_pack_seq_kwargs``, is understood, too.

    Args:
        x: tokens (1 n) or embeddings (1 n dim).
        arguments: of the call.

    Raises:
        FlagError: edges that do not fit ``x``; an argument that does not go together with them.
    """
    cu_seqlens = arguments.pop("cu_seqlens", None)
    spelled = arguments.pop("flash_pack_seq_kwargs", None)
    if cu_seqlens is None and spelled is not None:
        cu_seqlens = _of_upstream(spelled)
    if cu_seqlens is None:
        return None
    require(
        x.shape[0] == 1,
        "cu_seqlens",
        f"cu_seqlens is for documents in one row, but x {shape(x)} has {x.shape[0]}: flatten the "
        "batch into one row",
    )
    check_edges(cu_seqlens, x.shape[1])
    for name, instead in NOT_WITH.items():
        if arguments.get(name) is not None:
            raise FlagError(name, f"{name} does not go together with cu_seqlens: {instead}")
    return cu_seqlens  # type: ignore[no-any-return]


def _of_upstream(spelled: dict[str, Any]) -> Tensor:
    edges = [spelled.get(f"cu_seqlens_{side}") for side in "qk"]
    for name, t in zip(("cu_seqlens_q", "cu_seqlens_k"), edges, strict=True):
        require(t is not None, "flash_pack_seq_kwargs", f"flash_pack_seq_kwargs lacks {name}")
    q, k = edges
    same = q is k or (q is not None and k is not None and q.shape == k.shape)
    require(
        same,
        "flash_pack_seq_kwargs",
        "flash_pack_seq_kwargs must have the same cu_seqlens_q and cu_seqlens_k: queries and keys "
        "are the same tokens",
    )
    return q  # type: ignore[return-value]


def packed_places(cu_seqlens: Tensor, n: int) -> Tensor:
    """Of each token in its document, int64 (n); does not wait for the device."""
    document = document_of(cu_seqlens, n).clamp(max=max(len(cu_seqlens) - 2, 0))
    return torch.arange(n, device=cu_seqlens.device) - cu_seqlens.long()[document]
