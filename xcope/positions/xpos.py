"""xPos: rotary whose dot products also decay with the distance, the fast pairs' most.

Sun et al., *A Length-Extrapolatable Transformer*, arXiv 2212.10554:

    q ← R(iω) ζ^(i − c) q,  k ← R(jω) ζ^(c − j) k
    ζ_m = ((2m/dim + γ) / (1 + γ))^(1/scale_base),  γ = 0.4

so that pair m of q·k is multiplied by ζ_m^(i − j), at most 1. Any common c gives the same; here it
lies midway between the first query and the last key, for then no factor is larger than it must be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.ops.rotate import rotate
from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import Rotary, RotaryAngles

GAMMA = 0.4
# Powers of ζ lie within e^−40 … e^40: the product of two, at a key after its query, is finite in
# float32 until it is masked. q's and k's own numbers may grow to e^4 before they leave float16.
LARGEST, HEADROOM = 40.0, 4.0


def decays(dim: int) -> Tensor:
    """ζ_m^scale_base = (2m/dim + γ) / (1 + γ) for the pairs m = 0 … dim/2 − 1, float32 (dim/2)."""
    return (torch.arange(0, dim, 2, device="cpu").float() + GAMMA * dim) / ((1 + GAMMA) * dim)


class XPosAngles(RotaryAngles):
    """Rotation and decay of every layer; x-transformers' buffer names.

    Powers of ζ are kept within bounds, which the fastest pairs meet where some 32,000 places lie
    between the first query and the last key (with scale_base 512; 5,800 in float16). Between two
    places that both lie beyond, at the beginning or at the end, these pairs do not decay.

    Args:
        dim: rotated channels per head, even.
        base: θ of the rotation.
        interpolation_factor: divides every angle.
        scale_base: larger decays slower.
        half_split: as in `RotaryAngles`.
    """

    scales = True
    scale: Tensor

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interpolation_factor: float = 1.0,
        scale_base: float = 512,
        *,
        half_split: bool = False,
    ) -> None:
        super().__init__(dim, base, interpolation_factor, half_split=half_split)
        self.scale_base = scale_base
        # persistent, because x-transformers' checkpoints hold it
        self.add_constant("scale", decays(dim), persistent=True)

    def powers(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """ζ_m^places, (n) or (b n) → (n m) or (b n m), within bounds for ``dtype``."""
        limit = min(LARGEST, math.log(torch.finfo(dtype).max) - HEADROOM)
        exponents = (places.to(self.scale.dtype) / self.scale_base)[..., None] * self.scale.log()
        return exponents.clamp(-limit, limit).exp()

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Rotation`."""
        # padding in front stands below 0, and does not matter
        first = q_pos.amin(-1, keepdim=True).clamp(min=0)
        centre = (first + k_pos.amax(-1, keepdim=True) + 1) // 2
        turned = []
        for x, pos, sign in ((q, q_pos, 1), (k, k_pos, -1)):
            zeta = self.powers(sign * (pos - centre), x.dtype)
            cos, sin = (t * zeta for t in self.turns(pos, self.inv_freq))
            turned.append(rotate(x, cos, sin, half_split=self.half_split))
        return turned[0], turned[1]


@register
@dataclass(frozen=True, kw_only=True)
class XPos(Rotary):
    """``position: xpos``: the options of `Rotary`, and

    Args:
        scale_base: larger decays slower.
    """

    name: ClassVar[str] = "xpos"
    title: ClassVar[str] = "xPos"
    paper: ClassVar[str] = "arXiv 2212.10554"
    formula: ClassVar[str] = "R(iω)ζ^i q · R(jω)ζ^(−j) k"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = "rotary_xpos"
    upstream_implies: ClassVar[frozenset[str]] = frozenset({"rotary_pos_emb"})
    upstream_options: ClassVar[dict[str, str]] = {
        **Rotary.upstream_options,
        "rotary_xpos_scale_base": "scale_base",
    }

    scale_base: float = 512.0

    def build(self, geometry: Geometry) -> XPosAngles:
        """The module that turns q and k."""
        dim, base = self.dim_and_base(geometry)
        self.require(self.scale_base > 0, "scale_base", "it must be above 0")
        return XPosAngles(
            dim, base, self.interpolation_factor, self.scale_base, half_split=self.half_split
        )
