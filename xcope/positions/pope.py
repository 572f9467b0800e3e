"""PoPE, polar coordinate position embedding: channels give magnitudes, places give angles.

Gopalakrishnan, Csordás, Schmidhuber, Mozer, *Decoupling the "What" and "Where" With Polar
Coordinate Positional Embeddings*, arXiv 2509.10534. Each channel c of a head becomes a pair:

    q_c → softplus(q_c) (cos iω_c, sin iω_c)
    k_c → softplus(k_c) (cos(jω_c + δ_c), sin(jω_c + δ_c)),  ω_c = base^(−c/d)

    q·k = Σ_c softplus(q_c) softplus(k_c) cos((i − j) ω_c − δ_c)

δ_c, one for each query head and channel, is learned and kept within −2π … 0. Here −δ_c turns the
queries instead of δ_c the keys: the same q·k, and keys that several query heads share, each with a
δ of its own, stay as few as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xcope.ops.polar import polar
from xcope.positions.base import Geometry, IndexedScheme, Rotation, Slot
from xcope.positions.registry import register


def polar_frequencies(dim: int, base: float) -> Tensor:
    """ω_c = base^(−c/dim) for the channels c = 0 … dim − 1, float32 (dim)."""
    return 1.0 / base ** (torch.arange(dim, device="cpu").float() / dim)


class PolarEmbedding(Rotation):
    """PoPE of every layer; x-transformers' parameter names. It doubles the width of q and k.

    Args:
        dim: of a head.
        heads: query heads.
        bias_uniform_init: δ starts at random within −2π … 0, instead of at 0.
        base: of the frequencies.
    """

    widens = True
    upstream_name = "polar_pos_emb"

    inv_freq: Tensor

    def __init__(
        self, dim: int, heads: int, bias_uniform_init: bool = False, base: float = 10000.0
    ) -> None:
        super().__init__()
        # persistent, because x-transformers' checkpoints hold it
        self.add_constant("inv_freq", polar_frequencies(dim, base), persistent=True)
        start = torch.zeros(heads, 1, dim)
        if bias_uniform_init:
            start.uniform_(-2 * math.pi, 0)
        self.learned_bias = nn.Parameter(start)

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Rotation`; q (b h i 2d) and k (b hk j 2d)."""
        delta = self.learned_bias[:, 0].to(self.inv_freq.dtype).clamp(-2 * math.pi, 0)
        delta = delta if heads is None else delta[heads]
        k_angles = k_pos[..., None].to(delta.dtype) * self.inv_freq
        k_turn = k_angles.cos(), k_angles.sin()
        q_turn = k_turn
        if q_pos is not k_pos:
            q_angles = q_pos[..., None].to(delta.dtype) * self.inv_freq
            q_turn = q_angles.cos(), q_angles.sin()
        return polar(q, *q_turn, phase=delta), polar(k, *k_turn)


@register
@dataclass(frozen=True, kw_only=True)
class PoPE(IndexedScheme):
    """``position: pope``.

    Args:
        bias_uniform_init: the learned phases start at random within −2π … 0, instead of at 0.
        base: of the frequencies; larger turns slower.
    """

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "PoPE"
    slot: ClassVar[Slot | None] = Slot.ROTATION
    paper: ClassVar[str] = "arXiv 2509.10534"
    formula: ClassVar[str] = "Σ_c softplus(q_c) softplus(k_c) cos((i−j)ω_c − δ_c)"
    oracle: ClassVar[str] = "x-transformers"
    excludes: ClassVar[Mapping[Slot | str, str]] = {
        "cope": "CoPE's table is as wide as a head, and PoPE's queries are twice as wide"
    }
    upstream_switch: ClassVar[str | None] = "polar_pos_emb"
    upstream_options: ClassVar[dict[str, str]] = {"polar_bias_uniform_init": "bias_uniform_init"}

    bias_uniform_init: bool = False
    base: float = 10000.0

    def build(self, geometry: Geometry) -> PolarEmbedding:
        """The module that turns q and k."""
        self.require(self.base > 1, "base", "it must be above 1")
        return PolarEmbedding(geometry.dim_head, geometry.heads, self.bias_uniform_init, self.base)
