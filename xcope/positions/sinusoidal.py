"""Sinusoidal absolute positions with a learned scale, added to the token embedding.

Vaswani et al., *Attention Is All You Need*, arXiv 1706.03762; the learned scale is
x-transformers'.

    x_i ← x_i + s · [sin(i ω), cos(i ω)],  ω_m = θ^(−2m/dim),  m = 0 … dim/2 − 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.positions.base import AddedToInput, Family, Geometry, IndexedScheme, Slot
from xcope.positions.registry import register


class SinusoidalPositions(AddedToInput):
    """Sines then cosines of ``pos · inv_freq``, times the scalar parameter ``scale``."""

    inv_freq: Tensor

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1) * dim**-0.5)
        self.add_constant("inv_freq", [theta ** (-2 * m / dim) for m in range(dim // 2)])

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """See `AddedToInput`; any length works."""
        places = self.places(x, pos, seq_start_pos, offset)
        angles = places[..., None].to(self.inv_freq.dtype) * self.inv_freq
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return (waves * self.scale).to(self.scale.dtype)


@register
@dataclass(frozen=True, kw_only=True)
class Sinusoidal(IndexedScheme):
    """``position: sinusoidal``.

    Args:
        theta: the slowest wavelength is about 2π·theta tokens.
    """

    name: ClassVar[str] = "sinusoidal"
    title: ClassVar[str] = "Sinusoidal positions"
    slot: ClassVar[Slot | None] = Slot.INPUT
    family: ClassVar[Family] = Family.FIXED
    paper: ClassVar[str] = "arXiv 1706.03762"
    formula: ClassVar[str] = "x_i + s·[sin iω, cos iω]"
    oracle: ClassVar[str] = "x-transformers"

    theta: float = 10000.0

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """The flag of x-transformers' wrapper."""
        return {}, {"scaled_sinu_pos_emb": True}

    def build(self, geometry: Geometry) -> SinusoidalPositions:
        """The module; the embedding's dimension must be even."""
        self.require(self.theta > 0, "theta", "it must be above 0")
        if geometry.dim % 2:
            raise FlagError(
                "dim",
                f"dim={geometry.dim} is odd, but position 'sinusoidal' needs sine and cosine pairs",
            )
        module = SinusoidalPositions(geometry.dim, self.theta)
        module.draw = self.draw
        return module
