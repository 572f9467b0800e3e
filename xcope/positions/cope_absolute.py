"""CoPE together with learned absolute positions.

Golovneva et al., arXiv 2405.18719, and Gehring et al., arXiv 1705.03122; ``position:
cope_absolute`` is ``position: [absolute, cope]`` under one name. x-transformers' CoPE is this one
unless ``use_abs_pos_emb=False`` is said.

    x_i ← x_i + e_i / √dim                     then CoPE in every layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xcope.positions.absolute import Absolute
from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.cope import ContextualPosition
from xcope.positions.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class CoPEWithAbsolute(ContextualPosition):
    """``position: cope_absolute``: the options of ``cope``, and

    Args:
        absolute_l2norm: option ``l2norm`` of ``absolute``.
    """

    name: ClassVar[str] = "cope_absolute"
    title: ClassVar[str] = "CoPE with learned absolute positions"
    slot: ClassVar[Slot | None] = None
    paper: ClassVar[str] = "arXiv 2405.18719, 1705.03122"
    formula: ClassVar[str] = "cope on x_i + e_i/√dim"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = None
    upstream_options: ClassVar[dict[str, str]] = {}

    absolute_l2norm: bool = False

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both switches of x-transformers."""
        return {"attn_use_cope": True}, {}

    def parts(self) -> tuple[Scheme, ...]:
        """CoPE and learned absolute positions."""
        return (self.itself(), Absolute(l2norm=self.absolute_l2norm))

    def build(self, geometry: Geometry) -> None:
        """Nothing of its own: its parts are built."""
        return
