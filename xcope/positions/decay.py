"""Per-row decay: logits decay by gates that each query has of its own, for every key between.

x-transformers' ``attn_data_dependent_alibi_per_row``; with sums that end one token later it is the
additive path integral of Zhang et al., *Group Representational Position Encoding* (GRAPE-AP),
arXiv 2512.07805.

    s_ij ← s_ij + post_log_scale · Σ_{j≤t<i} log sigmoid(x_it)      x_it = g_i·g'_t / √gate_dim

g and g' are small queries and keys, ``gate_dim`` wide, that each token's input is projected to.
With ``own`` the sum is over j < t ≤ i, as in the paper. With ``gate_dim: null`` the gates are
CoPE's, of the logits themselves, x_it = scale · q_i·k_t: CoPE's count used as a decay. Forgetting
attention has one gate for each token, where this has one for each pair: there x_it = x_t.

Nothing here knows a token's place. What x-transformers holds n × n is walked through as CoPE's
counts are (`xcope.ops.cope`), in O(n) memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xcope.errors import listing
from xcope.ops.cope import BACKENDS, decay_attention, decays
from xcope.positions.base import AttendInputs, AttendModule, Geometry, Scheme, Slot
from xcope.positions.registry import register


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
        self.heads, self.gate_dim, self.post_log_scale = heads, gate_dim, post_log_scale
        self.own, self.backend = own, backend
        self.remembers = gate_dim is not None
        if gate_dim is None:
            self.gate_keys = "keys"
        else:
            linear = nn.Linear(dim, 2 * heads * gate_dim, bias=False)
            self.to_forget_gates = nn.Sequential(linear)

    def remember(self, x: Tensor) -> Tensor:
        """g and g' of each token, (b h n 2c), g scaled."""
        gates: Tensor = self.to_forget_gates(x)
        g, keys = gates.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return torch.cat((g * g.shape[-1] ** -0.5, keys), dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`; O(n) memory."""
        gate_q, gate_k, bare = None, k if inputs.gate_k is None else inputs.gate_k, 0
        remembered = inputs.remembered
        if remembered is not None:
            bare = k.shape[2] - remembered.shape[2]
            if inputs.heads is not None:
                remembered = remembered[:, inputs.heads]
            if bare:
                remembered = nn.functional.pad(remembered, (0, 0, bare, 0))
            gate_q, gate_k = remembered.to(q.dtype).chunk(2, dim=-1)
            gate_q = gate_q[:, :, gate_q.shape[2] - q.shape[2] :]
        return decay_attention(
            q,
            k,
            v,
            gate_k,
            gate_q=gate_q,
            rate=self.post_log_scale,
            own=self.own,
            bare=bare,
            scale=inputs.scale,
            mask=inputs.mask,
            causal=inputs.causal,
            bias=inputs.bias,
            cu_seqlens=inputs.cu_seqlens,
            backend=self.backend,
        )

    def gate_logits(self, q: Tensor, logits: Tensor, inputs: AttendInputs) -> Tensor:
        """x, (b h i j), at least float32; without meaning for keys that have no gate."""
        if inputs.remembered is not None:
            g, keys = inputs.remembered.chunk(2, dim=-1)
            x = g[:, :, g.shape[2] - q.shape[2] :] @ keys.mT
        else:
            x = logits if inputs.gate_k is None else inputs.scale * (q @ inputs.gate_k.mT)
        return x.to(torch.promote_types(x.dtype, torch.float32))

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
        if logits is None or seen is None or inputs is None:
            return q.new_zeros(1)
        x, rate = self.gate_logits(q, logits, inputs), self.post_log_scale
        return decays(x, seen, rate=rate, own=self.own, bare=inputs.bare).to(logits.dtype)

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``gates``: sigmoid(x), 0 where a key is not seen."""
        return {"gates": self.gate_logits(q, logits, inputs).sigmoid().masked_fill(~seen, 0.0)}


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

    gate_dim: int | None = 8
    post_log_scale: float = 1.0
    own: bool = False
    backend: str = "auto"

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """A switch of x-transformers, and one that varies it."""
        layers = {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True}
        return layers, {"use_abs_pos_emb": False}

    def build(self, geometry: Geometry) -> Decay:
        """The gates of one layer."""
        allowed = listing(["auto", *BACKENDS])
        self.require(self.backend in ("auto", *BACKENDS), "backend", f"choose among {allowed}")
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
