"""Forgetting attention: each token decides how much of the past is forgotten when it is read.

Lin et al., *Forgetting Transformer: Softmax Attention with a Forget Gate*, arXiv 2503.02130;
x-transformers calls it data-dependent ALiBi.

    s_ij ← s_ij + Σ_{t=j+1..i} log f_t,  log f_t = post_log_scale · log sigmoid(w_h·x_t + b_h)

x_t is what the layer's attention reads. With c_i = Σ_{t≤i} log f_t the sum is c_i − c_j. Nothing
here knows a token's place, so a cache needs the log f of its tokens beside their keys and values.

x-transformers starts b at 5 and w as PyTorch does, with standard deviation 1/√(3 dim), 0.051 for
dim 128: f is .99, and half is forgotten in about 90 tokens. The authors start b at 0 and w with
0.02 (``start: authors``): f is .5, and half is forgotten with each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.ops.terms import Separable
from xcope.positions.base import AttendInputs, AttendModule, Geometry, Scheme, Slot
from xcope.positions.registry import register


class Forgetting(AttendModule):
    """The forget gates of one layer; x-transformers' parameter names.

    Args:
        dim: of the decoder.
        heads: of the decoder.
        bias_init: where b begins.
        post_log_scale: multiplies every log f.
        std: standard deviation with which w begins; None: as PyTorch's linear layers.
    """

    upstream_name = "data_dependent_alibi"
    remembers = True

    def __init__(
        self,
        dim: int,
        heads: int,
        bias_init: float = 5.0,
        post_log_scale: float = 1.0,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.post_log_scale = post_log_scale
        linear = nn.Linear(dim, heads)
        nn.init.constant_(linear.bias, bias_init)
        if std is not None:
            nn.init.normal_(linear.weight, std=std)
        self.to_forget_gates = nn.Sequential(linear)

    def remember(self, x: Tensor) -> Tensor:
        """log f of each token.

        Args:
            x: (b n dim).

        Returns:
            (b h n), at least float32.
        """
        gates: Tensor = self.to_forget_gates(x)
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        return self.log_f(gates).mT * self.post_log_scale

    def log_f(self, gates: Tensor) -> Tensor:
        """log f from w·x + b, any shape."""
        return F.logsigmoid(gates)

    def terms(self, remembered: Tensor, i: int) -> Separable:
        """The bias of the last ``i`` tokens' queries, as vectors for tiled attention.

        Sums are made in float64 (where the device has it) and then told from their mean over the
        queries: c of a long text is a large number, whose digits after the point float32 would
        lose; this way they are there near the middle query, or at the only one.

        Args:
            remembered: log f of all keys, (b h j).
            i: number of queries.
        """
        exact = remembered.dtype if remembered.device.type == "mps" else torch.float64
        c = remembered.cumsum(-1, dtype=exact)
        # not an entry: its index would tell exported programs something about the length
        middle = c[..., -i:].mean(-1, keepdim=True).detach()  # cancels out, also from the gradient
        c = (c - middle).to(remembered.dtype)
        return Separable(c[..., -i:], c)

    def forward(
        self,
        q: Tensor,
        logits: Tensor | None = None,
        seen: Tensor | None = None,
        inputs: AttendInputs | None = None,
    ) -> Tensor:
        """See `AttendModule`; with one argument, 0.

        So x-transformers calls what has this name, for a bias that is added elsewhere.
        """
        if inputs is None or inputs.remembered is None:
            return q.new_zeros(1)
        return self.dense(inputs.remembered, q.shape[2])


@register
@dataclass(frozen=True, kw_only=True)
class ForgettingAttention(Scheme):
    """``position: forgetting``.

    Args:
        bias_init: where the gates' bias begins; 5 forgets little, the authors' is 0.
        post_log_scale: multiplies the logarithm of every gate.
        init_std: standard deviation with which the gates' weights begin; the authors' is 0.02.
            None: 1/√(3 dim), as x-transformers.
    """

    name: ClassVar[str] = "forgetting"
    title: ClassVar[str] = "Forgetting attention"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "arXiv 2503.02130"
    formula: ClassVar[str] = "q·k + Σ_{t=j+1..i} log σ(w_h·x_t + b_h)"
    oracle: ClassVar[str] = "x-transformers"
    excludes: ClassVar[Mapping[Slot | str, str]] = {
        Slot.BIAS: "what is forgotten is itself a bias of the logits"
    }
    upstream_switch: ClassVar[str | None] = "attn_data_dependent_alibi"
    upstream_kwargs: ClassVar[str | None] = "attn_data_dependent_alibi_kwargs"
    module: ClassVar[type[Forgetting]] = Forgetting
    authors: ClassVar[Mapping[str, Any]] = {"bias_init": 0.0, "init_std": 0.02}

    bias_init: float = 5.0
    post_log_scale: float = 1.0
    init_std: float | None = None

    def build(self, geometry: Geometry) -> Forgetting:
        """The gates of one layer."""
        self.require(self.post_log_scale > 0, "post_log_scale", "it must be above 0")
        self.require(self.init_std is None or self.init_std >= 0, "init_std", "0 or more, or null")
        return self.module(
            geometry.dim, geometry.heads, self.bias_init, self.post_log_scale, self.init_std
        )
