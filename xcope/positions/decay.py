"""Per-row decay: logits decay by gates that each query has of its own, for every key between.

x-transformers' ``attn_data_dependent_alibi_per_row``; with sums that end one token later it is the
additive path integral of Zhang et al., *Group Representational Position Encoding* (GRAPE-AP),
arXiv 2512.07805.

    s_ij ← s_ij + post_log_scale · Σ_{j≤t<i} log sigmoid(x_it)      x_it = g_i·g'_t / √gate_dim

g and g' are small queries and keys, ``gate_dim`` wide, that each token's input is projected to.
With ``own`` the sum is over j < t ≤ i, as in the paper. With ``gate_dim: null`` the gates are
CoPE's, of the logits themselves, x_it = scale · q_i·k_t: CoPE's count used as a decay. Forgetting
attention has one gate for each token, where this has one for each pair: there x_it = x_t. As there,
and in x-transformers, tokens that a mask hides decay the logits of those before them; with gates of
the logits they do not, as they do not count for CoPE.

Nothing here knows a token's place. What x-transformers holds n × n is walked through as CoPE's
counts are (`xcope.ops.cope`), in O(n) memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.ops.cope import BACKENDS, decay_attention, decays
from xcope.positions.base import AttendInputs, AttendModule, Geometry, Scheme, Slot
from xcope.positions.registry import register

OPEN = 1e4
"""The logit of a gate that is open to the last bit, in any dtype."""


class Decay(AttendModule):
    """The gates of one layer; x-transformers' parameter names.

    Args:
        dim: of the decoder.
        heads: query heads.
        gate_dim: of the gates' queries and keys; None: gates are made of the logits.
        post_log_scale: multiplies the logarithm of every gate.
        own: sum from the key after to the query's own, instead of from the key to the one before.
        backend: of `xcope.ops.cope.decay_attention`.
    """

    upstream_name = "data_dependent_alibi"
    takes_sink = True

    def __init__(
        self,
        dim: int,
        heads: int,
        gate_dim: int | None = 8,
        post_log_scale: float = 1.0,
        own: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.heads, self.post_log_scale = heads, post_log_scale
        self.own, self.backend = own, backend
        self.remembers = self.gives_bias = gate_dim is not None
        if gate_dim is None:
            self.gate_keys = "keys"
        else:
            self.width = gate_dim
            linear = nn.Linear(dim, 2 * heads * gate_dim, bias=False)
            self.to_forget_gates = nn.Sequential(linear)

    def remember(self, x: Tensor) -> Tensor:
        """g, scaled, g' and 1 of each token, (b h n 2c + 1); where there is no token all is 0."""
        gates: Tensor = self.to_forget_gates(x)
        g, keys = gates.view(*gates.shape[:2], 2, self.heads, self.width).permute(2, 0, 3, 1, 4)
        there = torch.ones_like(g[..., :1])
        return torch.cat((g * g.shape[-1] ** -0.5, keys, there), dim=-1)

    def _gates(self, remembered: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """The gates' queries and keys, (b h i c + 1) and (b h j c + 1), of the last i tokens and of
        all; where there is no token gates are open."""
        g, keys, there = remembered.tensor_split([self.width, 2 * self.width], dim=-1)
        g = g[:, :, g.shape[2] - i :]
        return F.pad(g, (0, 1), value=1.0), torch.cat((keys, OPEN * (1 - there)), dim=-1)

    def dense(self, remembered: Tensor, i: int) -> Tensor:
        """See `AttendModule`."""
        wide = torch.promote_types(remembered.dtype, torch.float32)
        gate_q, gate_k = self._gates(remembered.to(wide), i)
        added = decays(gate_q @ gate_k.mT, rate=self.post_log_scale, own=self.own)
        return added.masked_fill(remembered[..., None, :, -1] == 0, 0.0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`; O(n) memory."""
        gate_q, gate_k, bare = None, k if inputs.gate_k is None else inputs.gate_k, 0
        remembered = inputs.remembered
        if remembered is not None:
            bare = k.shape[2] - remembered.shape[2]
            if inputs.heads is not None:
                remembered = remembered[:, inputs.heads]
            gate_q, gate_k = self._gates(remembered.to(q.dtype), q.shape[2])
            gate_k = F.pad(gate_k, (0, 0, bare, 0)) if bare else gate_k
        return decay_attention(
            q,
            k,
            v,
            gate_k,
            gate_q=gate_q,
            rate=self.post_log_scale,
            own=self.own,
            bare=bare,
            hidden_gates=remembered is not None,
            scale=inputs.scale,
            mask=inputs.mask,
            causal=inputs.causal,
            bias=inputs.bias,
            cu_seqlens=inputs.cu_seqlens,
            sink=inputs.sink,
            backend=self.backend,
        )

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
        if logits is None or inputs is None:
            return q.new_zeros(1)
        if inputs.remembered is not None:
            return self.dense(inputs.remembered, q.shape[2]).to(logits.dtype)
        x = self._of_logits(q, logits, inputs)
        return decays(x, seen, rate=self.post_log_scale, own=self.own).to(logits.dtype)

    def _of_logits(self, q: Tensor, logits: Tensor, inputs: AttendInputs) -> Tensor:
        """x, (b h i j), where gates are those of the logits without a bias of theirs."""
        x = logits if inputs.gate_k is None else inputs.scale * (q @ inputs.gate_k.mT)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``gates``: sigmoid(x), 0 where a key is not seen."""
        if inputs.remembered is None:
            x = self._of_logits(q, logits, inputs)
        else:
            gate_q, gate_k = self._gates(inputs.remembered, q.shape[2])
            x = gate_q @ gate_k.mT
        return {"gates": x.sigmoid().masked_fill(~seen, 0.0)}


@register
@dataclass(frozen=True, kw_only=True)
class PerRowDecay(Scheme):
    """``position: decay``.

    Args:
        gate_dim: width of the gates' queries and keys; null: gates are made of the logits.
        post_log_scale: multiplies the logarithm of every gate.
        own: sum the gates from the key after to the query's own, as GRAPE-AP does, instead of from
            the key to the one before the query, as x-transformers does.
        backend: which implementation computes it, see `xcope.cope_attention`; all agree.
    """

    name: ClassVar[str] = "decay"
    title: ClassVar[str] = "Per-row decay (GRAPE-AP)"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "arXiv 2512.07805"
    formula: ClassVar[str] = "q·k + Σ_{t=j..i−1} log σ(g_i·g'_t / √gate_dim)"
    oracle: ClassVar[str] = "x-transformers"

    upstream_switch: ClassVar[str | None] = "attn_data_dependent_alibi_per_row"
    upstream_varies: ClassVar[str | None] = "attn_data_dependent_alibi"
    upstream_options: ClassVar[dict[str, str]] = {
        "attn_data_dependent_alibi_per_row_dim_head": "gate_dim"
    }
    upstream_kwargs: ClassVar[str | None] = "attn_data_dependent_alibi_kwargs"

    gate_dim: int | None = 8
    post_log_scale: float = 1.0
    own: bool = False
    backend: str = "auto"

    def build(self, geometry: Geometry) -> Decay:
        """The gates of one layer."""
        self.require_among("backend", ["auto", *BACKENDS])
        self.require(self.gate_dim is None or self.gate_dim >= 1, "gate_dim", "1 or more, or null")
        self.require(0 < self.post_log_scale < math.inf, "post_log_scale", "it must be above 0")
        return Decay(
            geometry.dim,
            geometry.heads,
            self.gate_dim,
            self.post_log_scale,
            self.own,
            self.backend,
        )
