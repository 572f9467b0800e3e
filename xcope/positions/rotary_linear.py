"""Rotary with linear position interpolation: all angles divided by one factor.

Chen, Wong, Chen, Tian, *Extending Context Window of Large Language Models via Positional
Interpolation*, arXiv 2306.15595. A model that was trained on L places reads factor·L of them as
if they stood between the places it knows:

    (q_2m, q_2m+1) ← R(i ω_m / factor) (q_2m, q_2m+1),  ω_m = base^(−2m/dim)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme


def linear_scale(dim: int, factor: float) -> Tensor:
    """What multiplies ω_m: 1 / factor for every pair, (dim/2)."""
    return torch.full((dim // 2,), 1 / factor, dtype=torch.float32, device="cpu")


@register
@dataclass(frozen=True, kw_only=True)
class RotaryLinear(RotaryScheme):
    """``position: rotary_linear``: the options of `RotaryScheme`, and

    Args:
        factor: at least 1; how many times the trained length is to be read.
    """

    name: ClassVar[str] = "rotary_linear"
    title: ClassVar[str] = "Rotary, linear interpolation"
    paper: ClassVar[str] = "arXiv 2306.15595"
    formula: ClassVar[str] = "R(iω/factor)q · R(jω/factor)k"
    oracle: ClassVar[str] = "transformers"

    factor: float = 2.0

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry)
        self.require(self.factor >= 1, "factor", "at least 1")
        scale = linear_scale(dim, self.factor)
        return RotaryAngles(dim, self.base, half_split=self.half_split, freq_scale=scale)
