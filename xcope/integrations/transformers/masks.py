"""Who sees whom, as transformers asks an attention implementation to write it down.

`xcope_mask` is registered beside our attention function. transformers' own masks are (b 1 n n);
attention here counts from each query backwards and knows causal order, padding and documents, so
that most masks are a vector:

    None                the queries are the last of the keys, and see all keys up to themselves
    bool (b 1 1 j)      the same among the first j keys, without those that are False
    uint32 (1 1 1 m+1)  cu_seqlens of the documents in the flattened rows
    uint64 (b 1 1 1+n)  a window, its width first, then as above which of n tokens are there
    bool (b 1 i j)      written out: patterns of one's own, windows beside a cache

All have four dimensions, for transformers passes on as it is what has four; in these dtypes nobody
else gives masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing

from xcope.errors import FlagError

DOCUMENTS, WINDOW = torch.uint32, torch.uint64
"""The dtypes of the two forms that are neither bool nor None."""

NOT_CAUSAL = (
    "attention_mask lets a token see later ones (a prefix LM, image tokens, an encoder): xcope's "
    "attention is causal, positions are counted back from each query: give a causal mask"
)


def xcope_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """Who sees whom in one call, see the head of this file; arguments as of transformers' masks.

    Raises:
        FlagError: a token sees later ones.
    """
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length]
        if not is_tracing(padding) and padding.device.type != "meta" and bool(padding.all()):
            padding = None

    def written_out(causal: bool) -> Tensor | None:
        mask: Tensor | None = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        if causal and mask is not None:
            mask.causal = True  # type: ignore[attr-defined]  # `understood` need not look
        return mask

    plain = mask_function is causal_mask_function
    traced = is_tracing(q_offset if isinstance(q_offset, Tensor) else None)
    unread = (isinstance(q_offset, Tensor) and traced) or (traced and not plain)
    if use_vmap or unread or torch.device(device).type == "meta":
        return written_out(causal=False)
    seen = int(q_offset) + q_length - kv_offset  # keys up to the last query
    if not plain:
        short = None
        if q_length > 1:
            pattern = _Pattern(
                mask_function, batch_size, q_length, int(q_offset), kv_offset, device
            )
            if pattern.sees_later():
                raise FlagError("attention_mask", NOT_CAUSAL)
            plain = pattern.last_sees_all(seen)
            if not plain and seen == kv_length == q_length:
                short = pattern.documents() if padding is None else None
                short = pattern.window(padding) if short is None else short
        if short is not None:
            return short
        if not plain:
            return written_out(causal=True)
    if seen == kv_length:
        return None if padding is None else padding[:, None, None]
    # a static cache, whose last slots are still empty
    if padding is None:
        padding = torch.ones(1, kv_length, dtype=torch.bool, device=device)
    return padding[:, None, None, :seen]  # type: ignore[no-any-return]


class _Pattern:
    """A mask function, looked at along a few lines: what it is, without the (n n) tensor."""

    def __init__(
        self,
        mask_function: Callable[..., Tensor],
        rows: int,
        queries: int,
        q_offset: int,
        kv_offset: int,
        device: torch.device | str,
    ) -> None:
        self.mask_function = mask_function
        self.rows = torch.arange(rows, device=device)[:, None]
        self.q = torch.arange(queries, device=device)[None] + q_offset
        self.kv_offset = kv_offset

    def at(self, q: Tensor, kv: Tensor) -> Tensor:
        """Whether tokens ``q`` see tokens ``kv``, pair by pair: bool (b n)."""
        seen = self.mask_function(self.rows, torch.zeros_like(q[:, :1]), q, kv)
        return seen.expand(len(self.rows), max(q.shape[1], kv.shape[1]))

    def sees_later(self) -> bool:
        """Whether a query sees the token after it."""
        return bool(self.at(self.q[:, :-1], self.q[:, 1:]).any())

    def last_sees_all(self, seen: int) -> bool:
        """Whether the last query sees all keys; windows and documents only end as it moves on."""
        keys = torch.arange(seen, device=self.q.device)[None] + self.kv_offset
        return bool(self.at(self.q[:, -1:], keys).all())

    def documents(self) -> Tensor | None:
        """cu_seqlens (1 1 1 m+1) if the mask is that of documents in a row, else None."""
        begins = ~self.at(self.q[:, 1:], self.q[:, :-1])
        begins = torch.cat((begins.new_ones(len(begins), 1), begins), dim=1)
        first = torch.where(begins, self.q, 0).cummax(-1).values
        apart = ~self.at(self.q, (first - 1).clamp(min=0)) | (first == 0)
        if not bool((self.at(self.q, first) & apart).all()):
            return None
        edges = begins.flatten().nonzero().flatten()
        end = edges.new_tensor([begins.numel()])
        cu_seqlens = torch.cat((edges, end)).to(torch.int32)
        return cu_seqlens[None, None, None].view(DOCUMENTS)

    def window(self, padding: Tensor | None) -> Tensor | None:
        """The window, its width before ``padding`` (b n), if the mask is that of one, else None.

        Also if the text is not longer than two of them, where nothing is won.
        """
        width = int(self.at(self.q[:, -1:], self.q).sum(-1).amax())
        first = (self.q - width + 1).clamp(min=0)
        ends = self.at(self.q, first) & ~self.at(self.q, first - 1) | (first == 0)
        if not 0 < width < self.q.shape[1] / 2 or not bool(ends.all()):
            return None
        there = torch.ones_like(self.q) if padding is None else padding
        return F.pad(there.long(), (1, 0), value=width)[:, None, None].view(WINDOW)


def understood(mask: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """A mask that `xcope_mask` did not make, in one of its forms; those that it made as they are.

    Args:
        mask: bool or additive, (b j) or what broadcasts to (b h i j).
        queries: i.
        keys: j, of which a static cache may have filled the first only.

    Raises:
        FlagError: numbers that are added to the logits; a token that sees later ones.
    """
    if mask is None or mask.dtype in (DOCUMENTS, WINDOW):
        return mask
    if mask.ndim == 2:
        mask = mask[:, None, None, -keys:].bool()
    if mask.dtype != torch.bool:
        mask = _seen(mask)
    if mask.shape[2] == 1:
        return mask
    mask = mask[..., :keys]
    if not is_tracing(mask) and mask.device.type != "meta" and not getattr(mask, "causal", False):
        _check_causal(mask)
        mask.causal = True  # type: ignore[attr-defined]
    return mask


def _seen(mask: Tensor) -> Tensor:
    """An additive mask of 0 and the dtype's lowest number, as bool."""
    if not mask.is_floating_point():
        return mask.bool()
    seen = mask > torch.finfo(mask.dtype).min / 2
    if not is_tracing(mask) and mask.device.type != "meta" and bool((mask[seen] != 0).any()):
        raise FlagError(
            "attention_mask",
            "attention_mask holds numbers other than 0 and the lowest one, a bias of the logits: "
            "give a bool mask, True where a token is seen, and the bias as a scheme",
        )
    return seen


def _check_causal(mask: Tensor) -> None:
    """Raise a `FlagError` unless the last key that each query sees, itself, moves on with it."""
    i, j = mask.shape[-2:]
    last = j - 1 - mask.flip(-1).to(torch.uint8).argmax(-1)
    last = last.masked_fill(~mask.any(-1), -1)
    earlier = last.cummax(-1).values[..., :-1]
    later = last[..., 1:]
    follows = bool(((later > earlier) | (later < 0)).all())
    if i == j:
        follows = bool((last <= torch.arange(i, device=mask.device)).all())
    if not follows:
        raise FlagError("attention_mask", NOT_CAUSAL)
