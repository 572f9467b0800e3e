"""Where the tokens of one call stand: their places, their documents, what is padding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.documents import check_edges, document_of
from xcope.ops.inputs import require, shape
from xcope.positions import Draw


@dataclass(eq=False)
class Places:
    """The places of a call's keys; its queries are the last of them.

    Args:
        keys: int64, (j), (b j) or, for each head, (b h j); what stands before the first token
            (memories) is below 0.
        given: whether the caller chose them, so that they may be in any order.
        documents: cu_seqlens where several documents are packed in the row, whose places ascend
            within each.
        drawable: whether schemes with ``random_max`` may draw theirs at random; not where given.
        training: whether they all do, not only those with ``random_at_test``.
        padding: (b j) bool, keys that mean nothing; None: there are none.
        between: whether other keys may stand before the padding: memories, embeddings.
        windows: those that layers have made of the places, by what they are made from.
    """

    keys: Tensor
    given: bool = False
    documents: Tensor | None = None
    drawable: bool = False
    training: bool = False
    padding: Tensor | None = None
    between: bool = False
    draws: dict[Draw, Tensor] = field(default_factory=dict, repr=False)
    """What was drawn for all layers of the call."""
    windows: dict[Any, Any] = field(default_factory=dict, repr=False)

    def draws_by(self, draw: Draw | None) -> bool:
        """Whether places are drawn for a scheme that draws them so, if at all."""
        return draw is not None and self.drawable and (self.training or draw.at_test)

    def drawn(self, draw: Draw | None, of_layer: dict[Draw, Tensor]) -> Tensor:
        """The keys' places, at random for schemes that draw them.

        Args:
            draw: how the scheme draws; None: it does not.
            of_layer: what was drawn for this layer alone.
        """
        if draw is None or not self.draws_by(draw):
            return self.keys
        kept = of_layer if draw.at_test else self.draws
        if draw not in kept:
            n = self.keys.shape[-1]
            if self.documents is None:
                drawn = draw.places(n, self.keys.device)
            else:
                drawn = draw.places_of_documents(self.documents, n)
            kept[draw] = drawn[self.keys.clamp(min=0)]
        return kept[draw]

    def ending_with(self, seen: Tensor) -> Places:
        """The same, but no place beyond that of a row's last key that is seen, (b j) bool."""
        if self.given or seen.shape[-1] > self.keys.shape[-1]:
            return self
        seen = F.pad(seen, (self.keys.shape[-1] - seen.shape[-1], 0), value=True)  # memories
        last = self.keys.masked_fill(~seen, 0).amax(-1, keepdim=True)
        return replace(self, keys=torch.minimum(self.keys, last))


def places_of(
    x: Tensor, training: bool, arguments: dict[str, Any], documents: Tensor | None = None
) -> Places:
    """The places of a decoder's call.

    A row that is padded on the left stands where it would stand alone: what comes before its
    tokens (``tokens_before`` of ``x``, and memories) keeps its places, the padding has that of the
    first token.

    Args:
        x: embeddings (b n dim), all tokens or, beside a cache, the new ones.
        training: see `Places`.
        arguments: the keyword arguments of the call; ``seq_start_pos`` becomes a mask there.
        documents: see `Places`; they have places of their own, whatever ``pos`` says.

    Raises:
        FlagError: ``pos`` or ``seq_start_pos`` that do not fit the tokens.
    """
    lead = arguments.pop("tokens_before", 0)
    if documents is not None:
        keys = packed_places(documents, x.shape[1])
        return Places(keys, documents=documents, drawable=True, training=training)
    cache, before_x, memories = arguments.get("cache"), 0, 0
    if cache is not None:
        before_x = tokens_only_cached(x.shape[1], cache, arguments.get("cache_age", 1))
    for memory in arguments.get("mems") or ():
        if memory is not None:
            memories = memory.shape[1]
            break
    total = before_x + x.shape[1]
    start, hidden = arguments.pop("seq_start_pos", None), None
    padding: Tensor | int = 0  # before each slot
    slots = torch.arange(total, device=x.device)
    if start is not None:
        _check_start(start, x)
        padding = torch.where(slots < lead, 0, start[:, None])
        seen = (slots < lead) | (slots - lead >= start[:, None])
        _hide_padding(seen, memories, arguments)
        hidden = F.pad(~seen, (memories, 0))
    between = hidden is not None and bool(lead or memories)
    before = torch.arange(-memories, 0, device=x.device)
    pos = arguments.get("pos")
    if pos is not None and is_places(pos, x):
        if pos.shape[-1] != total:
            raise FlagError(
                "pos",
                f"pos has {pos.shape[-1]} places, but there are {total} tokens"
                + (" with those in the cache" if before_x else ""),
            )
        pos = pos.long()
        keys = torch.cat((pos[..., :1] + before, pos), dim=-1)
        return Places(keys, given=True, padding=hidden, between=between)
    first = (arguments.get("seq_pos_offset") or before_x) - before_x
    keys = slots
    if start is not None:
        keys = torch.maximum(slots - padding, slots.clamp(max=lead))
        before = before.expand(len(keys), -1)
    if memories:
        keys = torch.cat((before, keys), dim=-1)
    return Places(keys + first, drawable=True, training=training, padding=hidden, between=between)


def tokens_only_cached(n: int, cache: Any, cache_age: int) -> int:
    """How many tokens stand before the ``n`` of a call: cached, and not among them.

    Of the ``n`` tokens the last ``cache_age`` are read (all, if it is not above 0): what is cached
    stands before these, whether or not it is handed over once more.

    Raises:
        FlagError: tokens that are neither cached nor read, so that none would ever see them.
    """
    cached = next((a.cached_kv[0].shape[-2] for a in cache.attn_intermediates if a.cached_kv), 0)
    new = min(cache_age, n) if cache_age > 0 else n
    if 0 < cached < n - new:
        raise FlagError(
            "cache_age",
            f"cache_age={cache_age} is not allowed: of {n} tokens the cache holds {cached}, so "
            f"{n - cached} are new; give cache_age={n - cached}",
        )
    return max(cached + new - n, 0)


def check_context_pos(pos: Any, context: Tensor) -> None:
    """Raise a `FlagError` unless ``pos``, (j) or (b j), are places of ``context`` (b j dim)."""
    whole = isinstance(pos, Tensor) and not (pos.is_floating_point() or pos.dtype == torch.bool)
    fits = whole and pos.shape in (context.shape[1:2], (1, context.shape[1]), context.shape[:2])
    if not fits:
        given = f"{tuple(pos.shape)} {pos.dtype}" if isinstance(pos, Tensor) else repr(pos)
        j = context.shape[1]
        raise FlagError(
            "context_pos",
            f"context_pos {given} is not allowed: places are whole numbers, int64 ({j}) or "
            f"({len(context)} {j})",
        )


def is_places(pos: Any, x: Tensor) -> bool:
    """Whether ``pos`` is of whole numbers; else it is an embedding of places, (… n dim).

    Raises:
        FlagError: neither.
    """
    if not isinstance(pos, Tensor) or pos.dtype == torch.bool or pos.is_complex():
        kind = pos.dtype if isinstance(pos, Tensor) else type(pos).__name__
        raise FlagError("pos", f"pos must be a tensor of whole numbers, but is {kind}")
    if pos.is_floating_point():
        if pos.ndim < 2 or pos.shape[-2] not in (1, x.shape[1]):
            raise FlagError(
                "pos",
                f"pos {tuple(pos.shape)} in {pos.dtype} is not allowed: places are whole numbers, "
                "int64 (n) or (b n), and an embedding of them is (n dim) or (b n dim)",
            )
        return False
    if pos.ndim not in (1, 2, 3) or (pos.ndim > 1 and pos.shape[0] not in (1, len(x))):
        raise FlagError(
            "pos",
            f"pos {tuple(pos.shape)} is not allowed with {len(x)} rows: places are (n), (b n) or, "
            "for each head, (b h n)",
        )
    return True


def _check_start(start: Any, x: Tensor) -> None:
    whole = isinstance(start, Tensor) and not (start.is_floating_point() or start.is_complex())
    if not whole or start.shape != x.shape[:1]:
        given = f"{tuple(start.shape)} {start.dtype}" if isinstance(start, Tensor) else repr(start)
        raise FlagError(
            "seq_start_pos",
            f"seq_start_pos {given} is not allowed: where each of the {len(x)} rows begins, int64 "
            f"({len(x)})",
        )


def _hide_padding(seen: Tensor, memories: int, arguments: dict[str, Any]) -> None:
    """Write what is no padding, (b slots), into ``self_attn_kv_mask``, beside other masks.

    x-transformers looks at no other mask of keys where this one is given, and takes it as wide as
    the keys.
    """
    mask, others = arguments.get("mask"), arguments.get("self_attn_kv_mask")
    if mask is not None and mask.shape[-1] == seen.shape[-1]:
        seen = seen & mask
    remembered = next((m for m in arguments.get("mem_masks") or () if m is not None), None)
    if memories:
        if remembered is None:
            remembered = seen.new_ones((len(seen), memories))
        seen = torch.cat((remembered, seen), dim=-1)
    arguments["self_attn_kv_mask"] = seen if others is None else seen & others


def check_masks(x: Tensor, arguments: dict[str, Any]) -> None:
    """Raise a `FlagError` if a mask is not bool or not of a shape that fits ``x`` (b n dim).

    Looks at no values.
    """
    for name in ("mask", "context_mask", "self_attn_kv_mask", "attn_mask"):
        mask = arguments.get(name)
        if mask is None:
            continue
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise FlagError(
                name,
                f"{name} must be a bool tensor, True where a key may be attended, but is {kind}: "
                "for a float mask of 0 and −inf give mask == 0",
            )
        rows, n = x.shape[:2]
        fits, wanted = mask.ndim == 2 and mask.shape[0] in (rows, 1), f"({rows} j)"
        if name == "mask":
            fits, wanted = mask.shape == (rows, n), f"({rows} {n})"
        elif name == "context_mask" and arguments.get("context") is not None:
            keys = arguments["context"].shape[1]
            fits, wanted = fits and mask.shape[-1] == keys, f"({rows} {keys})"
        elif name == "attn_mask":
            fits = mask.ndim in (2, 3, 4) and mask.shape[-2] in (1, n)
            wanted = f"({n} j), (h {n} j) or (b h {n} j)"
        if not fits:
            raise FlagError(
                name,
                f"{name} {tuple(mask.shape)} does not fit x {tuple(x.shape)}: it must be {wanted}",
            )
        if name == "attn_mask" and arguments.get("causal") is not False:
            _check_causal(mask, n)


def _check_causal(mask: Tensor, n: int) -> None:
    """Refuse a mask that only asks for later tokens, which a causal decoder does not show."""
    i, j = mask.shape[-2:]
    if i < 2 or i != n or j < n or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return
    later = torch.ones(i, j, dtype=torch.bool, device=mask.device).triu(j - n + 1)
    if (mask & later).any() and not (~mask & ~later).any():
        raise FlagError(
            "attn_mask",
            "attn_mask hides nothing and shows later tokens, but attention stays causal beside it: "
            "drop it, or, for a prefix that sees all of itself, pass causal=False too, with a mask "
            "that is causal after the prefix",
        )


# -- packed documents: several in one row, each as if it stood alone ------------------------------

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
    _check_documents(cu_seqlens, x)
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


def _check_documents(cu_seqlens: Any, x: Tensor) -> None:
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
    """Values are looked at on CPUs only: elsewhere that would wait for the device."""
    if q.shape != k.shape:
        return False
    seen = q.device.type == k.device.type == "cpu" and not torch.compiler.is_compiling()
    return not seen or q.tolist() == k.tolist()


def packed_places(cu_seqlens: Tensor, n: int) -> Tensor:
    """Of each token in its document, int64 (n); does not wait for the device."""
    document = document_of(cu_seqlens, n).clamp(max=max(len(cu_seqlens) - 2, 0))
    return torch.arange(n, device=cu_seqlens.device) - cu_seqlens.long()[document]
