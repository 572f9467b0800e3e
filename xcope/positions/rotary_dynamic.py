"""Rotary, dynamic NTK: the base grows with the text once it passes the trained length.

Proposed by the user emozilla on Reddit (r/LocalLLaMA, 2023); written up by Peng, Quesnelle, Fan,
Shippole, *YaRN*, arXiv 2309.00071. With places 0 … L − 1 in the text:

    s = factor · max(L, trained_len) / trained_len − (factor − 1)
    ω_m = (base · s^(dim/(dim−2)))^(−2m/dim)

Up to the trained length s is 1. The paper's growth is that of ``factor`` 1, s = L / trained_len;
Hugging Face's models have other factors, too. Beyond the trained length every new token turns all
earlier ones again, so that keys that were turned earlier are of no use.

Here the base follows each row, whatever was read before. Hugging Face's models take the longest row
of a batch for all of them, and keep the base that a long call has grown, until a call is shorter
than ``trained_len`` again: there the same text between the two lengths reads otherwise after a
longer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xcope.positions.base import Geometry
from xcope.positions.registry import register
from xcope.positions.rotary import RotaryAngles, RotaryScheme
from xcope.positions.rotary_ntk import ntk_scale


def stretch(k_pos: Tensor, factor: float, trained_len: int) -> Tensor:
    """s of the formula, from the places of each row's keys; () or (b), float32."""
    length = (k_pos.amax(-1) + 1).clamp(min=trained_len).float()
    return factor * length / trained_len - (factor - 1)


class DynamicRotaryAngles(RotaryAngles):
    """`RotaryAngles` whose base follows the largest place of the row.

    Args:
        dim: rotated channels per head, even, at least 4.
        base: θ of the formula.
        factor: of the formula.
        trained_len: of the formula.
        half_split: as in `RotaryAngles`.
    """

    length_dependent = True

    def __init__(
        self, dim: int, base: float, factor: float, trained_len: int, *, half_split: bool
    ) -> None:
        super().__init__(dim, base, half_split=half_split)
        self.dim = dim
        self.factor = factor
        self.trained_len = trained_len

    def frequencies(self, k_pos: Tensor) -> Tensor:
        """(dim/2) frequencies for a text with keys at the places ``k_pos``, (b 1 dim/2) of rows."""
        s = stretch(k_pos, self.factor, self.trained_len)
        scale = ntk_scale(self.dim, s[..., None], k_pos.device)
        return self.inv_freq * (scale[:, None] if k_pos.ndim > 1 else scale)


@register
@dataclass(frozen=True, kw_only=True)
class RotaryDynamic(RotaryScheme):
    """``position: rotary_dynamic``: the options of `RotaryScheme`, and

    Args:
        factor: at least 1; how fast s grows past the trained length.
        trained_len: the length that the model was trained on; it must be given.
    """

    name: ClassVar[str] = "rotary_dynamic"
    title: ClassVar[str] = "Rotary, dynamic NTK"
    paper: ClassVar[str] = "arXiv 2309.00071"
    formula: ClassVar[str] = "R(iω)q · R(jω)k, base·s(L)^(dim/(dim−2))"
    oracle: ClassVar[str] = "transformers"

    factor: float = 1.0
    trained_len: int | None = None

    def build(self, geometry: Geometry) -> DynamicRotaryAngles:
        """The module that turns q and k."""
        dim = self.rotated_channels(geometry, least=4)
        self.require(self.factor >= 1, "factor", "at least 1")
        trained_len = self.known_length(self.trained_len)
        return DynamicRotaryAngles(
            dim, self.base, self.factor, trained_len, half_split=self.half_split
        )
