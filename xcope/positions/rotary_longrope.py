"""Rotary, LongRoPE: a factor of its own for each pair, one set for short texts, one for long ones.

Ding et al., *LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens*, arXiv 2402.13753; the
factors λ are found by a search, and released with the models (Phi-3, Phi-4-mini). With places
0 … L − 1 in the text, L_0 the trained length:

    ω_m = base^(−2m/dim) / λ_m,  λ = short_factor for L ≤ L_0, long_factor beyond
    q, k ← t · R(iω)q, t · R(jω)k,  t = √(1 + ln factor / ln L_0)

A text that grows past L_0 turns all its tokens again, so that no cache can be kept: transformers
keeps one, in which earlier tokens stay as they were turned. There, too, the longest row of a batch
decides for all its rows; here each for itself. Without a search, ``long_factor`` is what NTK-aware
scaling by ``factor`` gives, λ_m = factor^(2m/(dim−2)), where the paper's search begins, too.

Options are called as in the ``rope_scaling`` of a Phi's config; its ``rope_theta`` is ``base``,
``partial_rotary_factor`` is ``dim``, and ``factor`` is max_position_embeddings /
original_max_position_embeddings. As there, and other than in ``rotary``, the whole head turns, and
pairs are (m, m + dim/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme
from xcope.positions.rotary_ntk import ntk_scale


def longrope_attention_factor(factor: float, trained_len: int) -> float:
    """√(1 + ln factor / ln L_0): the paper's t."""
    return math.sqrt(1 + math.log(factor) / math.log(trained_len)) if factor > 1 else 1.0


class LongRotaryAngles(RotaryAngles):
    """`RotaryAngles` with other frequencies for rows that are longer than the trained length.

    Args:
        dim: rotated channels per head, even.
        base: θ of the formula.
        trained_len: L_0 of the formula.
        short: (dim/2), 1 / short_factor.
        long: (dim/2), 1 / long_factor.
        half_split: as in `RotaryAngles`.
        amplitude: as in `RotaryAngles`.
    """

    length_dependent = True

    long_scale: Tensor

    def __init__(
        self,
        dim: int,
        base: float,
        trained_len: int,
        short: Tensor,
        long: Tensor,
        *,
        half_split: bool,
        amplitude: float,
    ) -> None:
        super().__init__(dim, base, half_split=half_split, freq_scale=short, amplitude=amplitude)
        self.trained_len = trained_len
        self.add_constant("long_scale", long)

    def frequencies(self, k_pos: Tensor) -> Tensor:
        """(dim/2) frequencies for a text with keys at the places ``k_pos``, (b 1 dim/2) of rows."""
        short = super().frequencies(k_pos)
        is_long = k_pos.amax(-1)[..., None] >= self.trained_len
        scale = torch.where(is_long, self.inv_freq * self.long_scale, short)
        return scale[:, None] if k_pos.ndim > 1 else scale


@register
@dataclass(frozen=True, kw_only=True)
class RotaryLongRoPE(RotaryScheme):
    """``position: rotary_longrope``: the options of `RotaryScheme`, and

    Args:
        factor: at least 1; how many times the trained length is to be read.
        original_max_position_embeddings: the length that the model was trained on; it must be
            given.
        short_factor: λ of each pair in texts up to that length; 1 for all if None.
        long_factor: λ of each pair in longer texts; NTK-aware scaling by ``factor`` if None.
        attention_factor: multiplies the turned channels of q and of k; t of the formula if None.
    """

    name: ClassVar[str] = "rotary_longrope"
    title: ClassVar[str] = "Rotary, LongRoPE"
    paper: ClassVar[str] = "arXiv 2402.13753"
    formula: ClassVar[str] = "t² R(iω')q · R(jω')k, ω' = ω/λ(L)"
    oracle: ClassVar[str] = "transformers"

    factor: float = 2.0
    original_max_position_embeddings: int | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    attention_factor: float | None = None
    dim: int | float | str | None = "whole"
    layout: str = "half_split"

    @property
    def trained_len(self) -> int | None:
        """What the other rotary schemes call ``original_max_position_embeddings``."""
        return self.original_max_position_embeddings

    def build(self, geometry: Geometry) -> LongRotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry, least=2 if self.long_factor else 4)
        self.require(self.factor >= 1, "factor", "at least 1")
        trained_len = self.known_length(self.trained_len, "original_max_position_embeddings")
        allowed = "at least 2, for its logarithm divides"
        self.require(trained_len > 1, "original_max_position_embeddings", allowed)
        sharpening = self.attention_factor
        allowed = "it must be above 0"
        self.require(sharpening is None or sharpening > 0, "attention_factor", allowed)
        if sharpening is None:
            sharpening = longrope_attention_factor(self.factor, trained_len)
        return LongRotaryAngles(
            dim,
            self.base,
            trained_len,
            self._scale("short_factor", torch.ones(dim // 2, device="cpu")),
            self._scale("long_factor", ntk_scale(dim, self.factor)),
            half_split=self.half_split,
            amplitude=sharpening,
        )

    def _scale(self, option: str, otherwise: Tensor) -> Tensor:
        """1 / λ of an option that is a list of λ, (dim/2)."""
        factors = getattr(self, option)
        if factors is None:
            return otherwise
        allowed = f"{len(otherwise)} numbers above 0, one for each pair that turns"
        fits = len(factors) == len(otherwise) and all(factor > 0 for factor in factors)
        self.require(fits, option, allowed)
        return 1 / torch.tensor(factors, dtype=torch.float32, device="cpu")
