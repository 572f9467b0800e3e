"""Sinks: a share of attention that goes to no key, beside any scheme.

OpenAI, *gpt-oss-120b & gpt-oss-20b Model Card*, arXiv 2508.10925: a learned logit for each head.
Softmax plus one: Miller, *Attention Is Off By One*, 2023; Xiao et al., arXiv 2309.17453.

    a_ij = exp(s_ij) / (exp(sink_h) + Σ_t exp(s_it)),  so out_i ← out_i · σ(lse_i − sink_h)

The logit is neither scaled nor biased, and the same for all queries of a head. Not learned it is
softmax plus one, sink_h = 0, or whatever ``init`` says. It needs no (n n) tensor: attention gives
the sum of its exponentials beside its output (`xcope.ops.sinks`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xcope.positions.base import Geometry, Scheme, Sinks, Slot
from xcope.positions.registry import register


class HeadSinks(Sinks):
    """The logits of one layer's heads.

    Args:
        heads: query heads.
        init: where they begin, or stay.
        learned: whether they are parameters.
    """

    def __init__(self, heads: int, init: float = 0.0, learned: bool = True) -> None:
        super().__init__()
        self.heads, self.init, self.learned = heads, float(init), learned
        begun = torch.full((heads,), self.init)
        self.head_attn_sink = nn.Parameter(begun) if learned else None

    def forward(self, learned: Tensor | None, device: torch.device) -> Tensor:
        """See `Sinks`."""
        return torch.full((self.heads,), self.init, device=device) if learned is None else learned


@register
@dataclass(frozen=True, kw_only=True)
class Sink(Scheme):
    """``position: sink``, alone or beside others: ``[rotary, sink]``.

    Args:
        learned: a logit of each head and layer is learned; false: it stays at ``init``.
        init: where it begins, or stays; 0 and not learned is softmax plus one.
    """

    name: ClassVar[str] = "sink"
    title: ClassVar[str] = "Sinks of attention"
    slot: ClassVar[Slot | None] = Slot.SINK
    paper: ClassVar[str] = "arXiv 2508.10925, 2309.17453"
    formula: ClassVar[str] = "exp(s_ij) / (exp(sink_h) + Σ_t exp(s_it))"
    oracle: ClassVar[str] = "transformers"
    shared: ClassVar[bool] = False
    upstream_switch: ClassVar[str | None] = "attn_head_learned_sink"

    learned: bool = True
    init: float = 0.0

    def build(self, geometry: Geometry) -> HeadSinks:
        """One layer's logits."""
        self.require(math.isfinite(self.init), "init", "a finite number")
        return HeadSinks(geometry.heads, self.init, self.learned)
