"""No positional encoding: only the causal mask tells a decoder about order.

Haviv et al., *Transformer Language Models without Positional Encodings Still Learn Positional
Information*, arXiv 2203.16634; Kazemnejad et al., arXiv 2305.19466.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class NoPosition(Scheme):
    """``position: none``."""

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "No positions (NoPE)"
    slot: ClassVar[Slot | None] = None
    paper: ClassVar[str] = "arXiv 2203.16634, 2305.19466"
    formula: ClassVar[str] = "q·k"
    oracle: ClassVar[str] = "x-transformers"

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """x-transformers without its learned absolute positions."""
        return {}, {"use_abs_pos_emb": False}

    def parts(self) -> tuple[Scheme, ...]:
        """Nothing."""
        return ()

    def build(self, geometry: Geometry) -> None:
        """Nothing."""
        return
