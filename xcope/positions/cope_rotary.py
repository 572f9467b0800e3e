"""CoPE together with rotary: gates and logits are those of the rotated queries and keys.

Golovneva et al., arXiv 2405.18719, and Su et al., arXiv 2104.09864; ``position: cope_rotary`` is
``position: [cope, rotary]`` under one name.

    s_ij = scale · R(iω)q_i · R(jω)k_j         then CoPE on s_ij, its table read by R(iω)q_i
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    slot: ClassVar[Slot | None] = None
    paper: ClassVar[str] = "arXiv 2405.18719, 2104.09864"
    formula: ClassVar[str] = "cope on R(iω)q · R(jω)k"
    upstream_switch: ClassVar[str | None] = None
    upstream_options: ClassVar[dict[str, str]] = {}

    rotary_dim: int | None = None

    def parts(self) -> tuple[Scheme, ...]:
        """CoPE and rotary."""
        cope = {name: getattr(self, name) for name in ContextualPosition.options()}
        return (ContextualPosition(**cope), Rotary(dim=self.rotary_dim))

    def build(self, geometry: Geometry) -> None:
        """Nothing of its own: its parts are built."""
        return
