"""ALiBi: attention with linear biases, each head with its own slope.

Press, Smith, Lewis, *Train Short, Test Long*, arXiv 2108.12409.

    s_ij ← s_ij − m_h |i − j|,  m_h = 2^(−8h/H) for H heads, h = 1 … H

For H that is no power of two the paper's code takes the slopes of the next smaller power and
fills up with every other slope of the next larger one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.terms import Separable
from xcope.positions.base import Family, Geometry, IndexBias, IndexedScheme, Slot
from xcope.positions.distances import distances, real
from xcope.positions.registry import register


def alibi_slopes(heads: int) -> list[float]:
    """m_h of the formula above, largest first."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    if power == heads:
        return slopes
    return slopes + alibi_slopes(2 * power)[::2][: heads - power]


class AlibiBias(IndexBias):
    """The bias of each query and key; no parameters.

    Args:
        slopes: one per head; heads beyond them get no bias.
        heads: of the decoder.
    """

    slopes: Tensor

    def __init__(self, slopes: list[float], heads: int) -> None:
        super().__init__()
        self.add_constant("slopes", slopes + [0.0] * (heads - len(slopes)))

    def dense(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """See `IndexBias`."""
        distance = real(distances(q_pos, k_pos).abs(), like=self.slopes)
        return -self.slopes[:, None, None] * distance[..., None, :, :]

    def terms(self, q_pos: Tensor, k_pos: Tensor, span: int) -> Separable:
        """See `IndexBias`: −m |i − j| = (−m i) − (−m j) where j ≤ i."""
        slopes = -self.slopes[:, None]
        q_pos, k_pos = q_pos.to(slopes.dtype), k_pos.to(slopes.dtype)
        return Separable(slopes * q_pos[..., None, :], slopes * k_pos[..., None, :])


@register
@dataclass(frozen=True, kw_only=True)
class Alibi(IndexedScheme):
    """``position: alibi``.

    Args:
        num_heads: how many heads get a bias; all if None.
        slopes: one per biased head instead of the paper's.
    """

    name: ClassVar[str] = "alibi"
    title: ClassVar[str] = "Linear biases (ALiBi)"
    slot: ClassVar[Slot | None] = Slot.BIAS
    family: ClassVar[Family] = Family.FIXED
    paper: ClassVar[str] = "arXiv 2108.12409"
    formula: ClassVar[str] = "q·k − m_h|i−j|"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = "alibi_pos_bias"
    upstream_options: ClassVar[dict[str, str]] = {"alibi_num_heads": "num_heads"}
    upstream_kwargs: ClassVar[str | None] = "rel_pos_kwargs"
    authors: ClassVar[Mapping[str, Any]] = {"num_heads": None, "slopes": None}

    num_heads: int | None = None
    slopes: tuple[float, ...] | None = None

    def build(self, geometry: Geometry) -> AlibiBias:
        """The bias, shared among layers."""
        biased = geometry.heads if self.num_heads is None else self.num_heads
        self.require(1 <= biased <= geometry.heads, "num_heads", f"1 to heads={geometry.heads}")
        slopes = alibi_slopes(biased) if self.slopes is None else list(self.slopes)
        if len(slopes) != biased:
            raise FlagError(
                "alibi_slopes",
                f"alibi_slopes has {len(slopes)} slopes, but {biased} heads are biased",
            )
        return AlibiBias(slopes, geometry.heads)
