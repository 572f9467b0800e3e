"""Rotary, soft-clipped: the slowest pairs fade out, the slowest of all stands still.

Li, Ren, Yuille, Wang, *CoPE: Clipped RoPE as A Scalable Free Lunch for Long Context LLMs*,
arXiv 2602.05258. It shares its short name with ``cope``, Contextual Position Encoding, and nothing
else. Of the dim/2 pairs, the ``clip`` slowest are slowed further:

    ω_m ← ω_m · ½(1 + cos θ_m),  θ_m from 0 to π in equal steps over these pairs

A pair whose period 2π/ω_m is longer than the training texts never completes a turn in training; the
paper clips about three quarters of such pairs. For Llama-3-8B (64 pairs, base 500000, trained on
8192 tokens) ``trained_len: 8192`` slows 22 of the 29 such pairs, the authors slow 20: ``clip: 20``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme

SHARE = 0.75  # of the pairs that make no full turn in training


def clipped_scale(dim: int, clip: int) -> Tensor:
    """What multiplies ω_m: 1, then ½(1 + cos θ_m) for the last ``clip`` of dim/2 pairs.

    θ begins at 0: the first of these pairs is still as it was.
    """
    scale = torch.ones(dim // 2, dtype=torch.float32, device="cpu")
    theta = torch.linspace(0, math.pi, clip, dtype=torch.float32, device="cpu")
    scale[dim // 2 - clip :] = (1 + theta.cos()) / 2
    return scale


def pairs_to_clip(dim: int, base: float, trained_len: int) -> int:
    """Three quarters of the pairs with a period 2π/ω_m above ``trained_len``, rounded."""
    periods = [2 * math.pi * base ** (2 * m / dim) for m in range(dim // 2)]
    return round(SHARE * len([p for p in periods if p > trained_len]))


@register
@dataclass(frozen=True, kw_only=True)
class RotaryClipped(RotaryScheme):
    """``position: rotary_clipped``: the options of `RotaryScheme`, and

    Args:
        clip: how many of the slowest pairs are slowed; at least 2 to change anything.
        trained_len: the training length, from which ``clip`` follows where it is not given.
    """

    name: ClassVar[str] = "rotary_clipped"
    title: ClassVar[str] = "Rotary, soft-clipped (Clipped RoPE)"
    paper: ClassVar[str] = "arXiv 2602.05258"
    formula: ClassVar[str] = "R(iω')q · R(jω')k, ω' = ω·½(1 + cos θ) for the slowest"
    oracle: ClassVar[str] = "formula"

    clip: int | None = None
    trained_len: int | None = None

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry)
        if self.clip is None and self.trained_len is None:
            raise FlagError(
                "rotary_clipped_clip",
                "position 'rotary_clipped' needs either rotary_clipped_clip, the number of pairs "
                "to slow, or rotary_clipped_trained_len, the length, in tokens, of the training "
                "texts",
            )
        clip = self.clip
        if clip is None:
            clip = pairs_to_clip(dim, self.base, self.known_length(self.trained_len))
        self.require(0 <= clip <= dim // 2, "clip", f"0 to {dim // 2}, the number of pairs")
        scale = clipped_scale(dim, clip)
        return RotaryAngles(dim, self.base, half_split=self.half_split, freq_scale=scale)
