"""CoPE together with ALiBi: gates and logits are those of the biased logits.

Golovneva et al., arXiv 2405.18719, and Press et al., arXiv 2108.12409; ``position: cope_alibi`` is
``position: [cope, alibi]`` under one name.

    s_ij = scale · q_i·k_j − m_h |i − j|       then CoPE on s_ij: far keys count less
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xcope.positions.alibi import Alibi
from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.cope import ContextualPosition
from xcope.positions.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class CoPEWithAlibi(ContextualPosition):
    """``position: cope_alibi``: the options of ``cope``, and

    Args:
        alibi_num_heads: option ``num_heads`` of ``alibi``.
    """

    name: ClassVar[str] = "cope_alibi"
    title: ClassVar[str] = "CoPE with ALiBi"
    slot: ClassVar[Slot | None] = None
    paper: ClassVar[str] = "arXiv 2405.18719, 2108.12409"
    formula: ClassVar[str] = "cope on q·k − m_h|i−j|"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = None
    upstream_options: ClassVar[dict[str, str]] = {}

    alibi_num_heads: int | None = None

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both switches of x-transformers."""
        return {"attn_use_cope": True, "alibi_pos_bias": True}, {"use_abs_pos_emb": False}

    def parts(self) -> tuple[Scheme, ...]:
        """CoPE and ALiBi."""
        return (self.itself(), Alibi(num_heads=self.alibi_num_heads))

    def build(self, geometry: Geometry) -> None:
        """Nothing of its own: its parts are built."""
        return
