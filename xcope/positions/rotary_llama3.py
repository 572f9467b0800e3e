"""Rotary, scaled as in Llama 3.1: slow pairs interpolated, fast ones as trained, a ramp between.

Grattafiori et al., *The Llama 3 Herd of Models*, arXiv 2407.21783; the formula is that of the
released code. A pair makes n_m = L ω_m / 2π turns within the trained length L:

    s_m = (n_m − low_freq_factor) / (high_freq_factor − low_freq_factor), kept within 0 … 1
    ω_m ← ω_m · (s_m + (1 − s_m) / factor)

so that pairs of more than ``high_freq_factor`` turns stay as they are, and those of fewer than
``low_freq_factor`` are slowed by ``factor``. The ramp runs over the turns of a pair, YaRN's over
its number; nothing is sharpened.

Options are called as in the ``rope_scaling`` of a Llama's config; its ``rope_theta`` is ``base``.
As there, and other than in ``rotary``, the whole head turns, and pairs are (m, m + dim/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme, frequencies


def llama3_scale(
    dim: int, base: float, factor: float, low: float, high: float, trained_len: int
) -> Tensor:
    """What multiplies ω_m: s_m + (1 − s_m) / factor, see above, (dim/2)."""
    turns = trained_len * frequencies(dim, base) / (2 * math.pi)
    s = (turns > low).float() if high == low else ((turns - low) / (high - low)).clamp(0, 1)
    return s + (1 - s) / factor


@register
@dataclass(frozen=True, kw_only=True)
class RotaryLlama3(RotaryScheme):
    """``position: rotary_llama3``: the options of `RotaryScheme`, and

    Args:
        factor: at least 1; how many times slower the slow pairs turn.
        low_freq_factor: pairs of fewer turns within the trained length are slowed entirely.
        high_freq_factor: pairs of more turns stay as they are; where both are one, as in Llama 4,
            there is no ramp.
        original_max_position_embeddings: the length that the model was trained on; it must be
            given.
    """

    name: ClassVar[str] = "rotary_llama3"
    title: ClassVar[str] = "Rotary, Llama 3"
    paper: ClassVar[str] = "arXiv 2407.21783"
    formula: ClassVar[str] = "R(iω')q · R(jω')k, ω' = ω(s + (1−s)/factor)"
    oracle: ClassVar[str] = "transformers"

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    dim: int | float | str | None = "whole"
    base: float = 500000.0
    layout: str = "half_split"

    @property
    def trained_len(self) -> int | None:
        """What the other rotary schemes call ``original_max_position_embeddings``."""
        return self.original_max_position_embeddings

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry)
        self.require(self.factor >= 1, "factor", "at least 1")
        trained_len = self.known_length(self.trained_len, "original_max_position_embeddings")
        low, high = self.low_freq_factor, self.high_freq_factor
        self.require(low > 0, "low_freq_factor", "it must be above 0")
        allowed = f"at least {self.flag('low_freq_factor')}={low}"
        self.require(high >= low, "high_freq_factor", allowed)
        scale = llama3_scale(dim, self.base, self.factor, low, high, trained_len)
        return RotaryAngles(dim, self.base, half_split=self.half_split, freq_scale=scale)
