"""CABLE, context-aware biases: each token adds a learned distance to all that stands before it.

Veisi, Mansourian, *Context-aware Biases for Length Extrapolation*, arXiv 2503.08067.

    s_ij ← s_ij − Σ_{t=j+1..i} softplus(w_h·x_t + b_h)

It is forgetting attention with another gate: −softplus(z) = log sigmoid(−z), so that the weights −w
and −b there give what w and b give here. As in the authors' code b begins at 0 and w with standard
deviation 0.02: each token begins log 2 away from the next. That code does not divide q·k by
√d_head; here it is divided, as in every scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from xcope.positions.base import Slot
from xcope.positions.forgetting import Forgetting, ForgettingAttention
from xcope.positions.registry import register


class Cable(Forgetting):
    """The learned distances of one layer's tokens; arguments as of `Forgetting`."""

    upstream_name = "cable"

    def log_f(self, gates: Tensor) -> Tensor:
        """−softplus(w·x + b), any shape."""
        return super().log_f(-gates)


@register
@dataclass(frozen=True, kw_only=True)
class ContextAwareBias(ForgettingAttention):
    """``position: cable``.

    Args:
        bias_init: where b begins.
        post_log_scale: multiplies every distance.
        init_std: standard deviation with which w begins; None: 1/√(3 dim), as PyTorch.
    """

    name: ClassVar[str] = "cable"
    title: ClassVar[str] = "Context-aware biases (CABLE)"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "arXiv 2503.08067"
    formula: ClassVar[str] = "q·k − Σ_{t=j+1..i} softplus(w_h·x_t + b_h)"
    oracle: ClassVar[str] = "formula"
    upstream_switch: ClassVar[str | None] = None
    upstream_kwargs: ClassVar[str | None] = None
    module: ClassVar[type[Forgetting]] = Cable
    authors: ClassVar[Mapping[str, Any]] = {"bias_init": 0.0, "init_std": 0.02}

    bias_init: float = 0.0
    init_std: float | None = 0.02
