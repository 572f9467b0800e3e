"""Rotary, proportional (p-RoPE): the fastest pairs turn, the slow ones stand still.

Barbero, Vitvitskyi, Perivolaropoulos, Pascanu, Veličković, *Round and Round We Go! What makes
Rotary Positional Encodings useful?*, arXiv 2410.06205; Gemma 4 has it in its layers without a
window.

    ω_m = base^(−2m/dim) / factor  for the fastest pairs, m < ⌊p dim/2⌋;  0 for others

Channels that stand still carry content whatever the distance. With ``rotary`` and ``dim: quarter``
as many pairs turn, but the slowest of them as slow as the slowest of a whole head; here the
frequencies are those that the fastest pairs of a whole head have.

Options are called as in the ``rope_parameters`` of transformers' configs; its ``rope_theta`` is
``base``. As there, and other than in ``rotary``, pairs are (m, m + dim/2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme


def kept_scale(dim: int, kept: int) -> Tensor:
    """What multiplies ω_m: 1 for the ``kept`` fastest of dim/2 pairs, 0 for the others, (dim/2)."""
    return (torch.arange(dim // 2, device="cpu") < kept).float()


@register
@dataclass(frozen=True, kw_only=True)
class RotaryProportional(RotaryScheme):
    """``position: rotary_proportional``: the options of `RotaryScheme`, and

    Args:
        partial_rotary_factor: p, the share of the pairs that turns.
        factor: at least 1; divides the frequencies of these.
    """

    name: ClassVar[str] = "rotary_proportional"
    title: ClassVar[str] = "Rotary, proportional (p-RoPE)"
    paper: ClassVar[str] = "arXiv 2410.06205"
    formula: ClassVar[str] = "R(iω')q · R(jω')k, ω' = 0 for the slow"
    oracle: ClassVar[str] = "transformers"
    authors: ClassVar[Mapping[str, Any]] = {"partial_rotary_factor": 0.75}

    partial_rotary_factor: float = 0.75
    factor: float = 1.0
    dim: int | float | str | None = "whole"
    layout: str = "half_split"

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry)
        share = self.partial_rotary_factor
        self.require(0 <= share <= 1, "partial_rotary_factor", "a share, from 0 to 1")
        self.require(self.factor >= 1, "factor", "at least 1")
        scale = kept_scale(dim, int(share * dim // 2)) / self.factor
        return RotaryAngles(dim, self.base, half_split=self.half_split, freq_scale=scale)
