"""CoPE together with rotary: gates and logits are those of the rotated queries and keys.

Golovneva et al., arXiv 2405.18719, and Su et al., arXiv 2104.09864; ``position: cope_rotary`` is
``position: [cope, rotary]`` under one name.

    s_ij = scale · R(iω)q_i · R(jω)k_j         then CoPE on s_ij, its table read by R(iω)q_i
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.cope import ContextualPosition
from xcope.positions.registry import register
from xcope.positions.rotary import Rotary


@register
@dataclass(frozen=True, kw_only=True)
class CoPEWithRotary(ContextualPosition):
    """``position: cope_rotary``: the options of ``cope``, and

    Args:
        rotary_dim: option ``dim`` of ``rotary``.
    """

    name: ClassVar[str] = "cope_rotary"
    title: ClassVar[str] = "CoPE with rotary"
    slot: ClassVar[Slot | None] = None
    paper: ClassVar[str] = "arXiv 2405.18719, 2104.09864"
    formula: ClassVar[str] = "cope on R(iω)q · R(jω)k"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = None
    upstream_options: ClassVar[dict[str, str]] = {}

    rotary_dim: int | float | str | None = None

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both switches of x-transformers."""
        return {"attn_use_cope": True, "rotary_pos_emb": True}, {"use_abs_pos_emb": False}

    def parts(self) -> tuple[Scheme, ...]:
        """CoPE and rotary."""
        return (self.itself(), Rotary(dim=self.rotary_dim))

    def build(self, geometry: Geometry) -> None:
        """Nothing of its own: its parts are built."""
        return
