"""Length-scaled logits: a factor of the query by its place, beside any scheme.

The more keys there are, the flatter a softmax of equal logits is. With n keys that query i sees:

    ssmax        s_h · log n                     s learned for each head (Scalable-Softmax)
    log_n        max(1, log n / log trained_len)
    llama4       1 + rate · log(⌊(i + 1) / every⌋ + 1)
    ministral3   1 + rate · log(⌊i / every⌋ + 1)

Nakanishi, *Scalable-Softmax Is Superior for Attention*, arXiv 2501.19399; Su, on log-n scaling,
2021, as in Qwen; Meta AI, Llama 4, where it acts in the layers without rotary positions; Mistral
AI, Ministral 3.

The factor multiplies the turned query: q·k, CoPE's q·e and its gates have it, a bias of the logits
has not. n is i + 1, the place counted from where a row or a document begins, or, beside a window,
what the window leaves of it. A query that sees one key has s · log 1 = 0, and attends to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xcope.positions.base import Geometry, QueryScale, Scheme, Slot
from xcope.positions.registry import register

KINDS = ("ssmax", "log_n", "llama4", "ministral3")


class LengthFactor(QueryScale):
    """The factors of one layer's queries.

    Args:
        heads: query heads.
        kind: one of ``KINDS``.
        init: where s of ssmax begins.
        trained_len: of log_n.
        every: of llama4 and ministral3.
        rate: of these.
    """

    def __init__(
        self,
        heads: int,
        kind: str,
        init: float = 0.168,
        trained_len: int | None = None,
        every: int = 8192,
        rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.kind, self.trained_len, self.every, self.rate = kind, trained_len, every, rate
        self.s = nn.Parameter(torch.full((heads, 1), float(init))) if kind == "ssmax" else None

    def forward(self, pos: Tensor, n: Tensor) -> Tensor:
        """See `QueryScale`."""
        wide = torch.float64 if self.s is not None and self.s.dtype == torch.float64 else None
        pos, n = (t.clamp(min=low)[..., None, :].to(wide or torch.float32)
                  for t, low in ((pos, 0), (n, 1)))  # fmt: skip
        if self.s is not None:
            return self.s.to(n.dtype) * n.log()
        if self.kind == "log_n":
            return (n.log() / math.log(self.trained_len or 2)).clamp(min=1)
        place = pos + 1 if self.kind == "llama4" else pos
        return 1 + self.rate * (place / self.every).floor().log1p()


@register
@dataclass(frozen=True, kw_only=True)
class LengthScale(Scheme):
    """``position: length_scale``, alone or beside others: ``[rotary, length_scale]``.

    Args:
        kind: ssmax, log_n, llama4 or ministral3, see the formulas.
        init: where s of ssmax begins; with 0.168 the mean of s · log n over 1024 places is 1.
        trained_len: of log_n, which needs one: the length up to which nothing is scaled.
        every: of llama4 and ministral3: after how many places the factor grows (Llama 4's
            ``floor_scale``).
        rate: of these: how much (Llama 4's ``attn_scale``, Ministral's ``llama_4_scaling_beta``).
    """

    name: ClassVar[str] = "length_scale"
    title: ClassVar[str] = "Length-scaled logits"
    slot: ClassVar[Slot | None] = Slot.SCALE
    paper: ClassVar[str] = "arXiv 2501.19399"
    formula: ClassVar[str] = "(s_h log n) q·k"
    oracle: ClassVar[str] = "transformers"
    shared: ClassVar[bool] = False

    kind: str = "ssmax"
    init: float = 0.168
    trained_len: int | None = None
    every: int = 8192
    rate: float = 0.1

    def build(self, geometry: Geometry) -> LengthFactor:
        """One layer's factors."""
        self.require_among("kind", KINDS)
        self.require(math.isfinite(self.init), "init", "a finite number")
        length = self.trained_len
        self.require(
            self.kind != "log_n" if length is None else length >= 2,
            "trained_len",
            "2 or more; kind log_n needs it",
        )
        self.require(self.every >= 1, "every", "1 or more")
        self.require(self.rate >= 0, "rate", "0 or more")
        return LengthFactor(
            geometry.heads, self.kind, self.init, self.trained_len, self.every, self.rate
        )
