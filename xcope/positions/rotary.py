"""Rotary position embedding (RoPE): queries and keys are rotated by their place.

Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding*, arXiv 2104.09864.
Pairs of channels turn by ``i·ω_m``, so that q·k depends on the distance only:

    (q_2m, q_2m+1) ← R(i ω_m) (q_2m, q_2m+1),  ω_m = base^(−2m/dim)

As in x-transformers, only the first ``dim`` channels of each head turn, half of them by default; in
the paper and in LLaMA the whole head does (``dim: whole``), in GPT-J and GPT-NeoX a quarter of it
(``dim: quarter``). ``interpolation_factor`` divides all angles (Chen et al., arXiv 2306.15595);
``base_rescale_factor`` raises the base to base·factor^(dim/(dim−2)), which stretches the slow
channels only ("NTK-aware").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xcope.errors import FlagError, listing
from xcope.ops.rotate import rotate
from xcope.positions.base import Geometry, IndexedScheme, Rotation, Scheme, Slot
from xcope.positions.registry import register

LAYOUTS = ("interleaved", "half_split")
SHARES = {"whole": 1.0, "half": 0.5, "quarter": 0.25}
"""Words for ``dim`` → the share of a head's channels that turns."""


def frequencies(dim: int, base: float) -> Tensor:
    """ω_m = base^(−2m/dim) for the pairs m = 0 … dim/2 − 1, float32 (dim/2)."""
    return 1.0 / base ** (torch.arange(0, dim, 2, device="cpu").float() / dim)


def rescaled_base(base: float, factor: float, dim: int) -> float:
    """base·factor^(dim/(dim−2)): the slowest of dim/2 pairs turns ``factor`` times slower."""
    return base if factor == 1 else float(base * factor ** (dim / (dim - 2)))


class RotaryAngles(Rotation):
    """Rotary position embedding of every layer; x-transformers' buffer name.

    Args:
        dim: rotated channels per head, even.
        base: θ of the formula.
        interpolation_factor: divides every angle.
        half_split: pairs (m, m + dim/2) instead of (2m, 2m + 1).
        freq_scale: (dim/2), multiplies the frequencies; 1 if None. ``inv_freq`` remains plain
            rotary's, so that a checkpoint trained with plain rotary loads under any scaling.
        amplitude: multiplies the turned channels of q and of k.
    """

    inv_freq: Tensor
    freq_scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interpolation_factor: float = 1.0,
        *,
        half_split: bool = False,
        freq_scale: Tensor | None = None,
        amplitude: float = 1.0,
    ) -> None:
        super().__init__()
        self.interpolation_factor = interpolation_factor
        self.half_split = half_split
        self.amplitude = amplitude
        # persistent, because x-transformers' checkpoints hold it
        self.add_constant("inv_freq", frequencies(dim, base), persistent=True)
        if freq_scale is None:
            self.freq_scale = None
        else:
            self.add_constant("freq_scale", freq_scale)

    def frequencies(self, k_pos: Tensor) -> Tensor:
        """(dim/2) frequencies for keys at the places ``k_pos``."""
        return self.inv_freq if self.freq_scale is None else self.inv_freq * self.freq_scale

    def turns(self, pos: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the angles at places (n) or (b n): (n m) or (b n m)."""
        angles = pos[..., None].to(inv_freq.dtype) * inv_freq
        if self.interpolation_factor != 1:
            angles = angles / self.interpolation_factor
        cos, sin = angles.cos(), angles.sin()
        if self.amplitude != 1:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        return cos, sin

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Rotation`; where ``q_pos`` is ``k_pos``, cos and sin are computed once."""
        inv_freq = self.frequencies(k_pos)
        k_turn = self.turns(k_pos, inv_freq)
        q_turn = k_turn if q_pos is k_pos else self.turns(q_pos, inv_freq)
        return (
            rotate(q, *q_turn, half_split=self.half_split),
            rotate(k, *k_turn, half_split=self.half_split),
        )


@dataclass(frozen=True, kw_only=True)
class TurningScheme(Scheme):
    """What all schemes have that turn pairs of channels.

    Args:
        dim: how many channels of each head turn: ``"whole"``, ``"half"``, ``"quarter"``, a share as
            0.4 (``partial_rotary_factor`` of transformers' configs), or an even number of them;
            None: half of them, as in x-transformers.
        base: θ; larger turns slower.
        layout: which channels turn together: ``"interleaved"`` (2m, 2m + 1), as x-transformers,
            or ``"half_split"`` (m, m + dim/2), as LLaMA.
    """

    slot: ClassVar[Slot | None] = Slot.ROTATION
    authors: ClassVar[Mapping[str, Any]] = {"dim": "whole"}

    dim: int | float | str | None = None
    base: float = 10000.0
    layout: str = "interleaved"

    def __post_init__(self) -> None:
        """See `Scheme`; and ``layout`` is a known one."""
        super().__post_init__()
        self.require_among("layout", LAYOUTS)

    @property
    def half_split(self) -> bool:
        """Of `RotaryAngles`."""
        return self.layout == "half_split"

    def rotated_channels(self, geometry: Geometry, least: int = 2) -> int:
        """The number of channels that turn, from ``dim``, checked.

        Raises:
            FlagError: an odd number of channels, fewer than ``least`` or more than there are; an
                unknown word for them; a base that is not above 1.
        """
        self.require(self.base > 1, "base", "it must be above 1")
        if self.dim is None:
            dim = geometry.dim_head // 2
            if dim < least or dim % 2:
                raise FlagError(
                    "dim_head",
                    f"dim_head={geometry.dim_head} is not allowed with position {self.name!r}, "
                    f"which turns half of each head in pairs: choose a multiple of 4 from "
                    f"{2 * least} on, or set {self.name}_dim",
                )
            return dim
        share = self.dim
        if isinstance(share, str):
            self.require_among("dim", SHARES)
            share = SHARES[share]
        if isinstance(share, float):
            self.require(0 < share <= 1, "dim", "a share of the head is above 0 and at most 1.0")
            share = int(share * geometry.dim_head)
        allowed = f"an even number from {least} to dim_head={geometry.dim_head}"
        if share != self.dim:
            allowed = f"that is {share} of {geometry.dim_head} channels: {allowed} turns in pairs"
        else:
            allowed = f"{allowed}, or {listing(SHARES)}"
        self.require(least <= share <= geometry.dim_head and share % 2 == 0, "dim", allowed)
        return share

    def known_length(self, trained_len: int | None, option: str = "trained_len") -> int:
        """``trained_len``, or what else ``option`` calls it: it has no default, only the user
        knows it.

        Raises:
            FlagError: None, or below 1.
        """
        if trained_len is None or trained_len < 1:
            flag = self.flag(option)
            raise FlagError(
                flag,
                f"{flag}={trained_len} is not allowed: set it to the length, in tokens, of the "
                "texts that the model was trained on",
            )
        return trained_len


@dataclass(frozen=True, kw_only=True)
class RotaryScheme(TurningScheme, IndexedScheme):
    """What all rotary schemes have: the options of `TurningScheme` and `IndexedScheme`."""


@register
@dataclass(frozen=True, kw_only=True)
class Rotary(RotaryScheme):
    """``position: rotary``: the options of `RotaryScheme`, and

    Args:
        interpolation_factor: at least 1; divides all angles.
        base_rescale_factor: raises the base, so that the slowest channels turn this many times
            slower.
    """

    name: ClassVar[str] = "rotary"
    title: ClassVar[str] = "Rotary (RoPE)"
    paper: ClassVar[str] = "arXiv 2104.09864"
    formula: ClassVar[str] = "R(iω)q · R(jω)k"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = "rotary_pos_emb"
    upstream_options: ClassVar[dict[str, str]] = {
        "rotary_emb_dim": "dim",
        "rotary_interpolation_factor": "interpolation_factor",
        "rotary_base_rescale_factor": "base_rescale_factor",
    }

    interpolation_factor: float = 1.0
    base_rescale_factor: float = 1.0

    def build(self, geometry: Geometry) -> RotaryAngles:
        """The module that turns q and k."""
        dim, base = self.dim_and_base(geometry)
        return RotaryAngles(dim, base, self.interpolation_factor, half_split=self.half_split)

    def dim_and_base(self, geometry: Geometry) -> tuple[int, float]:
        """Rotated channels, and the base after its rescaling; every option checked."""
        dim = self.rotated_channels(geometry)
        self.require(self.interpolation_factor >= 1, "interpolation_factor", "at least 1")
        self.require(self.base_rescale_factor > 0, "base_rescale_factor", "it must be above 0")
        self.require(
            self.base_rescale_factor == 1 or dim > 2,
            "base_rescale_factor",
            "rescaling the base needs more than 2 rotated channels",
        )
        return dim, rescaled_base(self.base, self.base_rescale_factor, dim)
