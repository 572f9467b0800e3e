"""Rotary position embedding (RoPE): queries and keys are rotated by their place.

Su et al., *RoFormer*, arXiv 2104.09864. Pairs of neighbouring channels turn by ``i·ω_m``, so
that q·k depends on the distance alone:

    (q_2m, q_2m+1) ← R(i ω_m) (q_2m, q_2m+1),  ω_m = base^(−2m/dim)

As in x-transformers, only the first ``dim`` channels of each head turn, half of them by default.
``interpolation_factor`` divides all angles (Chen et al., arXiv 2306.15595);
``base_rescale_factor`` raises the base to base·factor^(dim/(dim−2)), which stretches the slow
channels only ("NTK-aware").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.registry import register


class RotaryAngles(nn.Module):
    """Angles of each place; the seam's host applies them to q and k.

    Args:
        dim: rotated channels per head, even.
        base: θ of the formula.
        interpolation_factor: divides every angle.
    """

    inv_freq: Tensor

    def __init__(self, dim: int, base: float = 10000.0, interpolation_factor: float = 1.0) -> None:
        super().__init__()
        self.interpolation_factor = interpolation_factor
        # persistent, because x-transformers' checkpoints hold it
        self.register_buffer("inv_freq", 1.0 / base ** (torch.arange(0, dim, 2).float() / dim))

    def forward(self, pos: Tensor) -> tuple[Tensor, float]:
        """Angles (1 n dim) or (b n dim), each twice in a row, and the scale 1.

        Args:
            pos: integer positions, (n) or (b n).
        """
        if pos.ndim == 1:
            pos = pos[None]
        angles = pos[..., None].type_as(self.inv_freq) * self.inv_freq / self.interpolation_factor
        return angles.repeat_interleave(2, dim=-1), 1.0


@register
@dataclass(frozen=True, kw_only=True)
class Rotary(Scheme):
    """``position: rotary``.

    Args:
        dim: rotated channels per head, even; half of ``dim_head`` if None.
        base: θ; larger turns slower.
        interpolation_factor: at least 1; divides all angles.
        base_rescale_factor: raises the base, so that the slowest channels turn this many times
            slower.
    """

    name: ClassVar[str] = "rotary"
    slot: ClassVar[Slot | None] = Slot.ROTATION
    paper: ClassVar[str] = "arXiv 2104.09864"
    formula: ClassVar[str] = "R(iω)q · R(jω)k"
    upstream_switch: ClassVar[str | None] = "rotary_pos_emb"
    upstream_options: ClassVar[dict[str, str]] = {
        "rotary_emb_dim": "dim",
        "rotary_interpolation_factor": "interpolation_factor",
        "rotary_base_rescale_factor": "base_rescale_factor",
    }

    dim: int | None = None
    base: float = 10000.0
    interpolation_factor: float = 1.0
    base_rescale_factor: float = 1.0

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that makes the angles."""
        dim = geometry.dim_head // 2 if self.dim is None else self.dim
        if self.dim is None and (dim < 2 or dim % 2):
            raise FlagError(
                "dim_head",
                f"dim_head={geometry.dim_head} is not allowed with position 'rotary', which turns "
                "half of each head in pairs: choose a multiple of 4, or set rotary_dim",
            )
        allowed = f"an even number from 2 to dim_head={geometry.dim_head}"
        self.require(2 <= dim <= geometry.dim_head and dim % 2 == 0, "dim", allowed)
        self.require(self.base > 1, "base", "it must be above 1")
        self.require(self.interpolation_factor >= 1, "interpolation_factor", "at least 1")
        self.require(self.base_rescale_factor > 0, "base_rescale_factor", "it must be above 0")
        self.require(
            self.base_rescale_factor == 1 or dim > 2,
            "base_rescale_factor",
            "rescaling the base needs more than 2 rotated channels",
        )
        rescale = self.base_rescale_factor ** (dim / (dim - 2)) if dim > 2 else 1.0
        return RotaryAngles(dim, self.base * rescale, self.interpolation_factor)
