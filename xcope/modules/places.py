"""Where the tokens of one call stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.modules.packed import packed_places
from xcope.positions import draw_places, draw_places_of_documents


class Places:
    """The places of a call's keys; its queries are the last of them.

    Args:
        keys: int64, (j) or (b j); what stands before the first token (memories) is below 0.
        given: whether the caller chose them, so that they may be in any order.
        documents: cu_seqlens where several documents are packed in the row, whose places ascend
            within each.
        drawn: whether schemes with ``random_max`` draw theirs at random.
    """

    def __init__(
        self,
        keys: Tensor,
        given: bool = False,
        drawn: bool = False,
        documents: Tensor | None = None,
    ) -> None:
        self.keys = keys
        self.given = given
        self.documents = documents
        self._draws: dict[int, Tensor] | None = {} if drawn and not given else None

    def __len__(self) -> int:
        return self.keys.shape[-1]

    def of(self, random_max: int | None) -> Tensor:
        """The keys' places for a scheme with this option; one draw serves all layers of a call."""
        if random_max is None or self._draws is None:
            return self.keys
        if random_max not in self._draws:
            if self.documents is None:
                drawn = draw_places(len(self), random_max, self.keys.device)
            else:
                drawn = draw_places_of_documents(self.documents, random_max)
            self._draws[random_max] = drawn[self.keys.clamp(min=0)]
        return self._draws[random_max]

    def span(self, random_max: int | None) -> int:
        """What the distances of places `of` a scheme stay below."""
        return len(self) if random_max is None or self._draws is None else random_max


def places_of(
    x: Tensor, drawn: bool, arguments: dict[str, Any], documents: Tensor | None = None
) -> Places:
    """The places of a decoder's call.

    Args:
        x: embeddings (b n dim), all tokens or, with ``input_not_include_cache``, the new ones.
        drawn: see `Places`.
        arguments: the keyword arguments of the call.
        documents: see `Places`; they have places of their own, whatever ``pos`` says.

    Raises:
        FlagError: ``pos`` that is not as long as the tokens.
    """
    if documents is not None:
        keys = packed_places(documents, x.shape[1])
        return Places(keys, drawn=drawn, documents=documents)
    cache, mems = arguments.get("cache"), arguments.get("mems")
    behind = 0  # tokens in the cache that are not in x
    if cache is not None and arguments.get("input_not_include_cache"):
        behind = cache.cache_length
    total = behind + x.shape[1]
    memories = next((m.shape[1] for m in mems or () if m is not None), 0)
    pos = arguments.get("pos")
    if pos is not None and not pos.is_floating_point():
        if pos.shape[-1] != total:
            raise FlagError(
                "pos",
                f"pos has {pos.shape[-1]} places, but there are {total} tokens"
                + (" with those in the cache" if behind else ""),
            )
        before = torch.arange(-memories, 0, device=x.device)
        return Places(torch.cat((pos[..., :1] + before, pos), dim=-1), given=True)
    offset = arguments.get("seq_pos_offset")
    first = behind if offset is None else offset
    keys = torch.arange(first - behind - memories, first + x.shape[1], device=x.device)
    start = arguments.get("seq_start_pos")
    if start is not None:
        keys = keys - start[:, None]
    return Places(keys, drawn=drawn)
