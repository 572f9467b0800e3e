"""Rotary, NTK-aware: a larger base, so that slow pairs turn slower and fast ones hardly do.

Proposed by the user bloc97 on Reddit (r/LocalLLaMA, 2023); written up by Peng, Quesnelle, Fan,
Shippole, *YaRN*, arXiv 2309.00071. The slowest pair turns ``factor`` times slower, the fastest as
before:

    ω_m = (base · factor^(dim/(dim−2)))^(−2m/dim) = base^(−2m/dim) · factor^(−2m/(dim−2))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme


def ntk_scale(dim: int, factor: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """What multiplies ω_m: factor^(−2m/(dim−2)) for the pairs m = 0 … dim/2 − 1, (dim/2)."""
    return factor ** (-torch.arange(0, dim, 2, device=device).float() / (dim - 2))


@register
@dataclass(frozen=True, kw_only=True)
class RotaryNTK(RotaryScheme):
    """``position: rotary_ntk``: the options of `RotaryScheme`, and

    Args:
        factor: at least 1; how many times slower the slowest pair turns.
    """

    name: ClassVar[str] = "rotary_ntk"
    title: ClassVar[str] = "Rotary, NTK-aware"
    paper: ClassVar[str] = "arXiv 2309.00071"
    formula: ClassVar[str] = "R(iω)q · R(jω)k, base·factor^(dim/(dim−2))"
    oracle: ClassVar[str] = "rotary-embedding-torch"

    factor: float = 2.0

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry, least=4)
        self.require(self.factor >= 1, "factor", "at least 1")
        scale = ntk_scale(dim, self.factor)
        return RotaryAngles(dim, self.base, half_split=self.half_split, freq_scale=scale)
