"""Windows: a query sees its last keys, and maybe the first ones, beside any scheme.

Beltagy et al., *Longformer*, arXiv 2004.05150; Jiang et al., *Mistral 7B*, arXiv 2310.06825. First
keys that all queries see ("sinks"): Xiao et al., *Efficient Streaming Language Models with
Attention Sinks*, arXiv 2309.17453. Chunks: Meta AI, Llama 4.

    i sees j ≤ i where i − j < size or j < sinks
    chunked: where ⌊j / size⌋ = ⌊i / size⌋ or j < sinks

A query is the last of the keys that it sees: ``size`` is ``sliding_window`` of Mistral and Gemma,
and x-transformers' ``attn_max_attend_past`` + 1. Tokens are counted from where a row begins, after
its padding, and anew in each document. Learned memory keys are seen by all queries. CoPE counts the
keys that are seen, no others. What a query does not see costs nothing: neither in training, nor
beside a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.positions.base import Geometry, KeyLimits, Scheme, Slot
from xcope.positions.registry import register


class WindowLimits(KeyLimits):
    """Which keys queries see; no parameters.

    Args:
        size: of the window, or of a chunk.
        sinks: how many first keys are seen in any case.
        chunked: the window is the chunk that a query stands in.
    """

    def __init__(self, size: int, sinks: int = 0, chunked: bool = False) -> None:
        super().__init__()
        self.size, self.sinks, self.chunked = size, sinks, chunked

    def forward(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyLimits`."""
        near = rank - rank % self.size if self.chunked else (rank + 1 - self.size).clamp(min=0)
        return torch.full_like(rank, self.sinks), near


@register
@dataclass(frozen=True, kw_only=True)
class Window(Scheme):
    """``position: window``, alone or beside others: ``[rotary, {name: window, size: 512}]``.

    Args:
        size: how many keys a query sees, itself the last of them.
        sinks: how many first keys of its row it sees besides.
        chunked: it sees the keys of its own chunk of ``size`` instead of the last ones.
    """

    name: ClassVar[str] = "window"
    title: ClassVar[str] = "Windows of the last keys"
    slot: ClassVar[Slot | None] = Slot.MASK
    paper: ClassVar[str] = "arXiv 2004.05150, 2309.17453"
    formula: ClassVar[str] = "q·k where i − j < size or j < sinks"
    oracle: ClassVar[str] = "transformers"
    upstream_switch: ClassVar[str | None] = "attn_max_attend_past"

    size: int = 256
    sinks: int = 0
    chunked: bool = False

    @classmethod
    def switched(cls, value: Any) -> Self | None:
        """x-transformers counts the keys before the query's own."""
        if value is None or value is False:
            return None
        if not isinstance(value, int) or value is True or value < 0:
            flag = str(cls.upstream_switch)
            wanted = "how many keys before its own a query sees, a whole number from 0 on"
            raise FlagError(flag, f"{flag}={value!r} is not allowed: {wanted}")
        return cls(size=value + 1)

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Scheme`; of a window as wide as here."""
        return {"attn_max_attend_past": cls.size - 1}, {"use_abs_pos_emb": False}

    def build(self, geometry: Geometry) -> WindowLimits:
        """The limits, shared among layers."""
        self.require(self.size >= 1, "size", "1 or more, as a query sees itself")
        self.require(self.sinks >= 0, "sinks", "0 or more")
        return WindowLimits(self.size, self.sinks, self.chunked)
