"""HoPE, high-frequency rotary: pairs that make no full turn in training stand still.

Chen, Lv, Luan, Wang, Liu, *HoPE: A Novel Positional Encoding Without Long-Term Decay for Enhanced
Context Awareness and Extrapolation*, arXiv 2410.21216; other papers call other things HoPE, too.

    ω_m = base^(−2m/dim)  where its period 2π/ω_m is within the trained length;  0 for slower pairs

A pair that makes no full turn in training has not shown all its angles when a longer text comes,
and bends attention towards the near and the first tokens; where it stands still its channels carry
content whatever the distance. It is ``rotary_proportional`` whose share follows from the length:
the number of turning pairs may be given as ``kept`` instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from xcope.errors import FlagError
from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme
from xcope.positions.rotary_proportional import kept_scale


def full_turns(dim: int, base: float, trained_len: int) -> int:
    """How many of dim/2 pairs have a period 2π/ω_m of at most ``trained_len``."""
    periods = [2 * math.pi * base ** (2 * m / dim) for m in range(dim // 2)]
    return len([period for period in periods if period <= trained_len])


@register
@dataclass(frozen=True, kw_only=True)
class RotaryHoPE(RotaryScheme):
    """``position: rotary_hope``: the options of `RotaryScheme`, and

    Args:
        trained_len: the training length, from which ``kept`` follows where it is not given.
        kept: how many of the fastest pairs turn.
    """

    name: ClassVar[str] = "rotary_hope"
    title: ClassVar[str] = "Rotary, high frequencies only (HoPE)"
    paper: ClassVar[str] = "arXiv 2410.21216"
    formula: ClassVar[str] = "R(iω')q · R(jω')k, ω' = 0 where 2π/ω > L"
    oracle: ClassVar[str] = "formula"

    trained_len: int | None = None
    kept: int | None = None

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim, kept = self.rotated_channels(geometry), self.kept
        if kept is None and self.trained_len is None:
            raise FlagError(
                "rotary_hope_trained_len",
                "position 'rotary_hope' needs either rotary_hope_trained_len, the length, in "
                "tokens, of the training texts, or rotary_hope_kept, the number of pairs that turn",
            )
        if kept is None:
            kept = full_turns(dim, self.base, self.known_length(self.trained_len))
        self.require(0 <= kept <= dim // 2, "kept", f"0 to {dim // 2}, the number of pairs")
        scale = kept_scale(dim, kept)
        return RotaryAngles(dim, self.base, half_split=self.half_split, freq_scale=scale)
