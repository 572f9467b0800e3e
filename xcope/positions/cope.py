"""CoPE, Contextual Position Encoding: each query counts the keys that its gates select.

Golovneva, Wang, Weston, Sukhbaatar, *Contextual Position Encoding: Learning to Count What's
Important*, arXiv 2405.18719.

    g_ij = sigmoid(s_ij)                       gates from the logits s_ij = scale · q_i·k_j
    p_ij = min(Σ_{t=j..i} g_it, max_pos − 1)   positions, counted back from the query
    s_ij ← s_ij + q_i·e[p_ij]                  e interpolated between the integers around p_ij

The table e starts at zero: a fresh layer is attention without positions. The attention itself is
`xcope.ops.cope.cope_attention`; its definition is in `xcope.ops.cope.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.ops.cope import cope_attention, position_bias
from xcope.positions.base import Geometry, Scheme, Slot
from xcope.positions.registry import register


class CoPE(nn.Module):
    """The table of one layer, and attention with it; x-transformers' parameter names.

    Args:
        dim: of a head.
        heads: query heads.
        max_pos: positions 0 … max_pos − 1.
        soft_onehot: weigh all integers by softmax(−|p − m| / temp) instead of interpolating.
        talking_heads: mix the gates' logits across heads by a learned (h h) matrix.
        soft_onehot_temp: the temperature above.
        backend: of `xcope.ops.cope.cope_attention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        max_pos: int,
        soft_onehot: bool = False,
        talking_heads: bool = False,
        soft_onehot_temp: float = 5e-2,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if max_pos < 1:
            raise FlagError("cope_max_pos", f"cope_max_pos={max_pos} must be at least 1")
        self.max_pos = max_pos
        self.soft_onehot = soft_onehot
        self.soft_onehot_temp = soft_onehot_temp
        self.backend = backend
        self.pos_emb = nn.Parameter(torch.zeros(max_pos, dim))
        self.talking_heads = nn.Conv2d(heads, heads, 1, bias=False) if talking_heads else None
        if soft_onehot:
            # not read here, but x-transformers' checkpoints hold it
            self.register_buffer("positions", torch.arange(max_pos))

    @property
    def head_mix(self) -> Tensor | None:
        """(h h) or None."""
        return None if self.talking_heads is None else self.talking_heads.weight[:, :, 0, 0]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        mask: Tensor | None = None,
        causal: bool = True,
        head_order: Tensor | None = None,
    ) -> Tensor:
        """Attention with this layer's table; shapes and errors as `cope_attention`.

        Args:
            head_order: (h) int64; head ``a`` of ``q`` is this layer's head ``head_order[a]``.
        """
        head_mix = self.head_mix
        if head_mix is not None and head_order is not None:
            head_mix = head_mix[head_order][:, head_order]
        return cope_attention(
            q,
            k,
            v,
            self.pos_emb,
            scale=scale,
            mask=mask,
            causal=causal,
            soft_onehot=self.soft_onehot,
            soft_onehot_temp=self.soft_onehot_temp,
            head_mix=head_mix,
            backend=self.backend,
        )

    def forward(self, query: Tensor, attn_logits: Tensor) -> Tensor:
        """The bias alone (b h i j), for attention that materialises its logits.

        Args:
            query: unscaled, (b h i d).
            attn_logits: (b h i j), masked keys at the dtype's lowest value, as x-transformers
                hands them to its own CoPE.
        """
        seen = attn_logits > torch.finfo(attn_logits.dtype).min / 2
        gate_logits = attn_logits
        if self.head_mix is not None:
            unmasked = attn_logits.masked_fill(~seen, 0.0)
            gate_logits = torch.einsum("gh,bhij->bgij", self.head_mix, unmasked)
        return position_bias(
            query,
            gate_logits,
            self.pos_emb,
            seen,
            soft_onehot=self.soft_onehot,
            soft_onehot_temp=self.soft_onehot_temp,
        )


@register
@dataclass(frozen=True, kw_only=True)
class ContextualPosition(Scheme):
    """``position: cope``.

    Args:
        max_pos: size of the table; counts beyond it share the last position.
        soft_onehot: weigh all integer positions instead of interpolating (paper, appendix).
        soft_onehot_temp: temperature of these weights.
        talking_heads: mix the gates' logits across heads.
    """

    name: ClassVar[str] = "cope"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "arXiv 2405.18719"
    formula: ClassVar[str] = "q·k + q·e[Σ_{t=j..i} σ(q·k_t)]"
    upstream_switch: ClassVar[str | None] = "attn_use_cope"
    upstream_options: ClassVar[dict[str, str]] = {
        "attn_cope_max_pos": "max_pos",
        "attn_cope_soft_onehot_pos": "soft_onehot",
        "attn_cope_talking_heads": "talking_heads",
    }

    max_pos: int = 16
    soft_onehot: bool = False
    soft_onehot_temp: float = 0.05
    talking_heads: bool = False

    def build(self, geometry: Geometry) -> CoPE | None:
        """One layer's module; its table is (max_pos dim_head)."""
        self.require(self.max_pos >= 1, "max_pos", "it must be at least 1")
        self.require(self.soft_onehot_temp > 0, "soft_onehot_temp", "it must be above 0")
        return CoPE(
            geometry.dim_head,
            geometry.heads,
            self.max_pos,
            soft_onehot=self.soft_onehot,
            talking_heads=self.talking_heads,
            soft_onehot_temp=self.soft_onehot_temp,
        )
