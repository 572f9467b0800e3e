"""ALiBi: attention with linear biases, each head with its own slope.

Press, Smith, Lewis, *Train Short, Test Long*, arXiv 2108.12409.

    s_ij ← s_ij − m_h |i − j|,  m_h = 2^(−8h/H) for H heads, h = 1 … H

For H that is no power of two the paper's code takes the slopes of the next smaller power and
fills up with every other slope of the next larger one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.registry import register


def alibi_slopes(heads: int) -> list[float]:
    """m_h of the formula above, largest first."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    if power == heads:
        return slopes
    return slopes + alibi_slopes(2 * power)[::2][: heads - power]


class AlibiBias(nn.Module):
    """The bias of every query and key index; no parameters.

    Args:
        slopes: one per head; heads beyond them get no bias.
        heads: of the decoder.
    """

    slopes: Tensor

    def __init__(self, slopes: list[float], heads: int) -> None:
        super().__init__()
        per_head = F.pad(torch.tensor(slopes, dtype=torch.float32), (0, heads - len(slopes)))
        self.register_buffer("slopes", per_head[:, None, None], persistent=False)

    def forward(self, i: int, j: int) -> Tensor:
        """Bias (h i j) of ``i`` queries that are aligned to the end of ``j`` keys."""
        keys = torch.arange(j, device=self.slopes.device)
        return self.between(keys[j - i :], keys)

    def between(self, pos_i: Tensor, pos_j: Tensor) -> Tensor:
        """Bias (… h i j) for positions of the queries (… i) and of the keys (… j)."""
        distance = (pos_i[..., :, None] - pos_j[..., None, :]).abs()
        return -self.slopes * distance[..., None, :, :]

    def forward_custom_pos(self, pos_i: Tensor, pos_j: Tensor | None = None) -> Tensor:
        """x-transformers' name for `between`; keys default to the queries' positions."""
        return self.between(pos_i, pos_i if pos_j is None else pos_j)


@register
@dataclass(frozen=True, kw_only=True)
class Alibi(Scheme):
    """``position: alibi``.

    Args:
        num_heads: how many heads get a bias; all if None.
        slopes: one per biased head instead of the paper's.
    """

    name: ClassVar[str] = "alibi"
    slot: ClassVar[Slot | None] = Slot.BIAS
    paper: ClassVar[str] = "arXiv 2108.12409"
    formula: ClassVar[str] = "q·k − m_h|i−j|"
    upstream_switch: ClassVar[str | None] = "alibi_pos_bias"
    upstream_options: ClassVar[dict[str, str]] = {"alibi_num_heads": "num_heads"}
    upstream_kwargs: ClassVar[str | None] = "rel_pos_kwargs"

    num_heads: int | None = None
    slopes: tuple[float, ...] | None = None

    def build(self, geometry: Geometry) -> AlibiBias:
        """The module that fills ``rel_pos``."""
        biased = geometry.heads if self.num_heads is None else self.num_heads
        self.require(1 <= biased <= geometry.heads, "num_heads", f"1 to heads={geometry.heads}")
        slopes = alibi_slopes(biased) if self.slopes is None else list(self.slopes)
        if len(slopes) != biased:
            raise FlagError(
                "alibi_slopes",
                f"alibi_slopes has {len(slopes)} slopes, but {biased} heads are biased",
            )
        return AlibiBias(slopes, geometry.heads)
