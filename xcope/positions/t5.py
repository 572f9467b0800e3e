"""T5's relative position bias: a learned number for each head and bucket of distances.

Raffel et al., *Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer*,
arXiv 1910.10683.

    s_ij ← s_ij + √d_head · w[bucket(i − j), h]

With E = num_buckets // 2, distances below E have a bucket each; the others share buckets of
logarithmically growing width, and distances near max_distance and beyond share the last one:

    bucket(δ) = δ                                          where δ < E, else
    bucket(δ) = E + ⌊log(δ/E) / log(max_distance/E) · (num_buckets − E)⌋, at most num_buckets − 1

The factor √d_head is x-transformers' (``scaled``); T5 itself has none. x-transformers starts w with
standard deviation 1 (``init_std``), T5's authors as Glorot, "xavier", with variance
2 / (num_buckets + heads), and Hugging Face's T5 with variance 1/d_model, "hugging_face". In a model
of dimension 64 with 4 heads the last of 128 queries begins with 15 effective keys (e to its
entropy) in x-transformers, with 125 in T5 and 127 in Hugging Face's: there nearly all are alike.
``start: authors`` takes "xavier" and no factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xcope.errors import did_you_mean, listing
from xcope.positions.base import Geometry, IndexedScheme, Slot
from xcope.positions.distances import DistanceBias, real
from xcope.positions.registry import register


def bucket_of(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket 0 … num_buckets − 1 of each distance; distances below 0 count as 0."""
    exact = num_buckets // 2
    near = distance.clamp(min=0)
    # in float32 as in T5's code: another precision moves the borders of the buckets
    octave = torch.log(near.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = exact + (octave * (num_buckets - exact)).long()
    return torch.where(near < exact, near, far.clamp(max=num_buckets - 1))


class T5Bias(DistanceBias):
    """The bias of each query and key; x-transformers' parameter names.

    Args:
        heads: of the decoder.
        scale: √d_head of the formula.
        num_buckets: rows of w.
        max_distance: from here on, at the latest, all distances share a bucket.
        std: standard deviation with which w begins.
    """

    def __init__(
        self, heads: int, scale: float, num_buckets: int, max_distance: int, std: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(num_buckets, heads)
        if std != 1:
            nn.init.normal_(self.relative_attention_bias.weight, std=std)
        buckets = bucket_of(torch.arange(max_distance + 1, device="cpu"), num_buckets, max_distance)
        self.last_bucket_from = int((buckets < num_buckets - 1).sum())

    def curve(self, distance: Tensor) -> Tensor:
        """See `DistanceBias`."""
        buckets = bucket_of(distance, self.num_buckets, self.max_distance)
        bias: Tensor = self.relative_attention_bias(buckets)
        return real(bias, like=bias) * self.scale

    def size(self, span: int) -> int:
        """Up to the first distance of the last bucket: what comes after is the same."""
        return self.last_bucket_from + 1


@register
@dataclass(frozen=True, kw_only=True)
class T5(IndexedScheme):
    """``position: t5``.

    Args:
        num_buckets: learned numbers per head, half of them for the shortest distances.
        max_distance: where the logarithmic buckets end.
        init_std: standard deviation with which w begins: 1 as x-transformers; ``"xavier"``, as T5's
            authors, √(2 / (num_buckets + heads)); ``"hugging_face"``, 1/√d_model; or a number.
        scaled: √d_head multiplies w, as in x-transformers; T5 itself has no factor.
    """

    name: ClassVar[str] = "t5"
    title: ClassVar[str] = "T5's bucketed bias"
    slot: ClassVar[Slot | None] = Slot.BIAS
    paper: ClassVar[str] = "arXiv 1910.10683"
    formula: ClassVar[str] = "q·k + √d·w_h[bucket(i−j)]"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = "rel_pos_bias"
    upstream_options: ClassVar[dict[str, str]] = {
        "rel_pos_num_buckets": "num_buckets",
        "rel_pos_max_distance": "max_distance",
    }
    upstream_kwargs: ClassVar[str | None] = "rel_pos_kwargs"
    authors: ClassVar[Mapping[str, Any]] = {"init_std": "xavier", "scaled": False}
    whole_places: ClassVar[str | None] = "each bucket is a range of whole distances"

    num_buckets: int = 32
    max_distance: int = 128
    init_std: float | str = 1.0
    scaled: bool = True

    def build(self, geometry: Geometry) -> T5Bias:
        """The bias, shared among layers."""
        self.require(self.num_buckets >= 2, "num_buckets", "at least 2")
        self.require(
            self.max_distance >= self.num_buckets,
            "max_distance",
            f"at least num_buckets={self.num_buckets}",
        )
        scale = geometry.dim_head**0.5 if self.scaled else 1.0
        std = self.std(geometry)
        return T5Bias(geometry.heads, scale, self.num_buckets, self.max_distance, std)

    def std(self, geometry: Geometry) -> float:
        """``init_std`` as a number."""
        named = {
            "xavier": (2 / (self.num_buckets + geometry.heads)) ** 0.5,
            "hugging_face": geometry.dim**-0.5,
        }
        given = named.get(self.init_std) if isinstance(self.init_std, str) else self.init_std
        near = did_you_mean(self.init_std, named) if isinstance(self.init_std, str) else ""
        allowed = f"a number from 0 on, or {listing(named)}{near}"
        self.require(given is not None and given >= 0, "init_std", allowed)
        return float(given or 0.0)
