"""Rotary, YaRN: fast pairs as trained, slow ones interpolated, and the attention sharpened.

Peng, Quesnelle, Fan, Shippole, *YaRN: Efficient Context Window Extension of Large Language
Models*, arXiv 2309.00071. Pair m makes β turns within the trained length at

    m(β) = dim · ln(trained_len / (2πβ)) / (2 ln base)

    r_m = (m − ⌊m(beta_fast)⌋) / (⌈m(beta_slow)⌉ − ⌊m(beta_fast)⌋), kept within 0 … 1
    ω_m ← (1 − r_m) ω_m + r_m ω_m / factor
    q, k ← attention_factor · R(iω)q, attention_factor · R(jω)k

The ramp r_m runs over the number of the pair, as in the authors' code and Hugging Face's; the paper
writes it over the turns of the pair. Channels that do not turn are not multiplied: with the default
of half the channels the attention factor, the paper's logit scale, falls on that half of q·k only.
``dim: whole`` is the paper's YaRN, which sharpens all of it.
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


def yarn_scale(
    dim: int,
    base: float,
    factor: float,
    trained_len: int,
    beta_fast: float,
    beta_slow: float,
    *,
    truncate: bool = True,
) -> Tensor:
    """What multiplies ω_m: 1 − r_m + r_m / factor, see above, (dim/2)."""

    def pair(beta: float) -> float:
        return dim * math.log(trained_len / (2 * math.pi * beta)) / (2 * math.log(base))

    first, last = pair(beta_fast), pair(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    # dim, not dim/2, as in the authors' code
    first, last = (min(max(bound, 0), dim - 1) for bound in (first, last))
    width = last - first or 0.001
    r = ((torch.arange(dim // 2, device="cpu").float() - first) / width).clamp(0, 1)
    return 1 - r + r / factor


def yarn_attention_factor(factor: float) -> float:
    """0.1 ln(factor) + 1: the paper's fit for q and for k."""
    return 0.1 * math.log(factor) + 1


@register
@dataclass(frozen=True, kw_only=True)
class RotaryYarn(RotaryScheme):
    """``position: rotary_yarn``: the options of `RotaryScheme`, and

    Args:
        factor: at least 1; how many times the trained length is to be read.
        trained_len: the length that the model was trained on; it must be given.
        beta_fast: pairs that make more turns than this within ``trained_len`` stay as they are.
        beta_slow: pairs that make fewer turns are interpolated entirely.
        attention_factor: multiplies the turned channels of q and of k; 0.1 ln(factor) + 1 if None.
        truncate: the ramp begins and ends at whole pairs, ⌊m⌋ and ⌈m⌉; False, as of GPT-OSS: where
            the formula says.
    """

    name: ClassVar[str] = "rotary_yarn"
    title: ClassVar[str] = "Rotary, YaRN"
    paper: ClassVar[str] = "arXiv 2309.00071"
    formula: ClassVar[str] = "t² R(iω')q · R(jω')k, ω' = (1−r)ω + rω/factor"
    oracle: ClassVar[str] = "transformers"

    factor: float = 2.0
    trained_len: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry)
        self.require(self.factor >= 1, "factor", "at least 1")
        trained_len = self.known_length(self.trained_len)
        self.require(self.beta_slow > 0, "beta_slow", "it must be above 0")
        above = f"it must be above {self.name}_beta_slow={self.beta_slow}"
        self.require(self.beta_fast > self.beta_slow, "beta_fast", above)
        sharpening = self.attention_factor
        allowed = "it must be above 0"
        self.require(sharpening is None or sharpening > 0, "attention_factor", allowed)
        betas = (self.beta_fast, self.beta_slow)
        return RotaryAngles(
            dim,
            self.base,
            half_split=self.half_split,
            freq_scale=yarn_scale(
                dim, self.base, self.factor, trained_len, *betas, truncate=self.truncate
            ),
            amplitude=yarn_attention_factor(self.factor) if sharpening is None else sharpening,
        )
