"""CoPE, Contextual Position Encoding: each query counts the keys that its gates select.

Golovneva, Wang, Weston, Sukhbaatar, *Contextual Position Encoding: Learning to Count What's
Important*, arXiv 2405.18719.

    g_ij = sigmoid(s_ij)                       gates from the logits s_ij = scale · q_i·k_j
    p_ij = min(Σ_{t=j..i} g_it, max_pos − 1)   positions, counted back from the query
    s_ij ← s_ij + q_i·e[p_ij]                  e interpolated between the integers around p_ij

Variants, each a flag: the gates from keys of their own, g_ij = sigmoid(scale · q_i·k'_j)
("sep-keys", section 4 of the paper, on how gates are computed), or from the values,
g_ij = sigmoid(scale · q_i·v_j) ("val-gates", there too); a table for each head where the paper
shares one among the heads of a layer; gates whose logits are mixed across heads (x-transformers'
talking heads).

The table e starts at zero, so that a fresh layer is attention without positions, or as noise
(``init_std``). Where ours differs from the authors' code it follows x-transformers, and options say
the authors' way: they divide q·e by √dim_head, as q·k (``scaled``; ours is their ``--cope-nodiv``,
the same as a table √dim_head times as large, which under Adam moves √dim_head times as far); their
table is as long as the block and one more (``max_pos: block``, where ours has 16 entries); beside
relative positions their gates see q·k alone (``biased_gates: false``, where ours see the biased
logits). One table for all layers (``shared``) is an option there, too. The attention itself is
`xcope.ops.cope.cope_attention`; its definition is in `xcope.ops.cope.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xcope.ops.cope import BACKENDS, cope_attention, position_bias, positions
from xcope.positions.base import AttendInputs, Geometry, Slot
from xcope.positions.registry import register
from xcope.positions.tables import Table, TableScheme


class CoPE(Table):
    """The table of one layer, and attention with it; x-transformers' parameter names.

    Args:
        dim: of a head.
        heads: query heads.
        max_pos: positions 0 … max_pos − 1; "block": see `Table`.
        soft_onehot: weigh all integers by softmax(−|p − m| / temp) instead of interpolating.
        talking_heads: mix the gates' logits across heads by a learned (h h) matrix.
        soft_onehot_temp: the temperature above.
        per_head: a table for each head, (heads max_pos dim), instead of one for all.
        sep_keys: the gates come from keys of their own (``AttendInputs.gate_k``).
        val_gates: the gates come from the values.
        init_std: the standard deviation with which the table begins.
        backend: of `xcope.ops.cope.cope_attention`.
        scaled: the table's logits q·e are scaled as q·k is.
        table_scale: multiplies them.
        biased_gates: gates are made of the logits with the bias of another scheme; False: of q·k.
    """

    beside_block = 1  # a count may be 0

    takes_window = True
    takes_sink = True

    def __init__(
        self,
        dim: int,
        heads: int,
        max_pos: int | str,
        soft_onehot: bool = False,
        talking_heads: bool = False,
        soft_onehot_temp: float = 5e-2,
        per_head: bool = False,
        sep_keys: bool = False,
        val_gates: bool = False,
        init_std: float = 0.0,
        backend: str = "auto",
        scaled: bool = False,
        table_scale: float = 1.0,
        biased_gates: bool = True,
    ) -> None:
        super().__init__(
            (heads, dim) if per_head else (dim,),
            max_pos,
            init_std=init_std,
            scaled=scaled,
            flag="cope_max_pos",
        )
        self.table_scale = table_scale
        self.soft_onehot = soft_onehot
        self.soft_onehot_temp = soft_onehot_temp
        self.sep_keys = sep_keys
        self.val_gates = val_gates
        self.backend = backend
        if sep_keys or val_gates:
            self.gate_keys = "own" if sep_keys else "values"
            self.gate_flag = "cope_sep_keys" if sep_keys else "cope_val_gates"
        elif not biased_gates:
            self.gate_keys = "keys"
        self.talking_heads = nn.Conv2d(heads, heads, 1, bias=False) if talking_heads else None
        if soft_onehot:
            # not read here, but x-transformers' checkpoints hold it
            self.register_buffer("positions", torch.arange(self.max_pos))

    @property
    def head_mix(self) -> Tensor | None:
        """(h h) or None."""
        return None if self.talking_heads is None else self.talking_heads.weight[:, :, 0, 0]

    def fit(self, block: int) -> None:
        """See `Table`."""
        super().fit(block)
        if self.soft_onehot:
            self.register_buffer("positions", torch.arange(self.max_pos))

    def table(self, scale: float) -> Tensor:
        """See `Table`."""
        table = super().table(scale)
        return table if self.table_scale == 1 else table * self.table_scale

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`; O(n) memory."""
        pos_emb = self.table(inputs.scale)
        # what gates see but for a bias is what the logits are made of
        unbiased = self.gate_keys == "keys" and inputs.bias is None
        head_mix = None if self.talking_heads is None else self.head_mix
        if inputs.heads is not None:
            pos_emb = pos_emb[inputs.heads] if pos_emb.ndim == 3 else pos_emb
            head_mix = None if head_mix is None else head_mix[inputs.heads][:, inputs.heads]
        return cope_attention(
            q,
            k,
            v,
            pos_emb,
            scale=inputs.scale,
            mask=inputs.mask,
            causal=inputs.causal,
            soft_onehot=self.soft_onehot,
            soft_onehot_temp=self.soft_onehot_temp,
            gate_k=None if unbiased else inputs.gate_k,
            head_mix=head_mix,
            bias=inputs.bias,
            cu_seqlens=inputs.cu_seqlens,
            window=inputs.window,
            sink=inputs.sink,
            backend=self.backend,
        )

    def forward(
        self,
        q: Tensor,
        logits: Tensor,
        seen: Tensor | None = None,
        inputs: AttendInputs | None = None,
    ) -> Tensor:
        """See `AttendModule`; with two arguments as x-transformers calls its own CoPE.

        Args:
            q: unscaled, (b h i d).
            logits: (b h i j).
            seen: bool (b h i j); None: keys whose logit is not the dtype's lowest value.
            inputs: for ``gate_k`` and ``scale``; None: the gates come from the logits.
        """
        gate_logits, seen = self.gate_logits(q, logits, seen, inputs)
        # counts are sums of many gates
        wide = torch.promote_types(gate_logits.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            bias = position_bias(
                q,
                gate_logits.to(wide),
                self.table(q.shape[-1] ** -0.5 if inputs is None else inputs.scale),
                seen,
                soft_onehot=self.soft_onehot,
                soft_onehot_temp=self.soft_onehot_temp,
            )
        return bias.to(logits.dtype)

    def gate_logits(
        self,
        q: Tensor,
        logits: Tensor,
        seen: Tensor | None = None,
        inputs: AttendInputs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the gates are the sigmoids of, and which keys are seen; arguments as of `forward`.

        Returns:
            (b h i j) logits, without meaning where a key is not seen; (b h i j) bool.
        """
        if seen is None:
            seen = ~(logits <= torch.finfo(logits.dtype).min / 2)  # NaN is no mask
        gate_logits = logits
        if inputs is not None and inputs.gate_k is not None:
            gate_logits = inputs.scale * (q @ inputs.gate_k.mT)
        if self.head_mix is not None:
            unmasked = gate_logits.masked_fill(~seen, 0.0)
            gate_logits = torch.einsum("gh,bhij->bgij", self.head_mix.to(unmasked.dtype), unmasked)
        return gate_logits, seen

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``gates`` g_ij, 0 where a key is not seen, and ``positions`` p_ij."""
        gate_logits, seen = self.gate_logits(q, logits, seen, inputs)
        gates = gate_logits.sigmoid().masked_fill(~seen, 0.0)
        return {"gates": gates, "positions": positions(gates, self.max_pos)}


@register
@dataclass(frozen=True, kw_only=True)
class ContextualPosition(TableScheme):
    """``position: cope``.

    Args:
        max_pos: size of the table; counts beyond it share the last position. "block": as many
            as tokens of a row in training, and one, as in the authors' code.
        soft_onehot: weigh all integer positions instead of interpolating (paper, appendix).
        soft_onehot_temp: temperature of these weights.
        talking_heads: mix the gates' logits across heads.
        per_head: a table for each head instead of one for all.
        sep_keys: gates from keys of their own (paper, section 4).
        val_gates: gates from the values (paper, section 4).
        init_std: the standard deviation of the normal noise that the table begins with; 0: zeros,
            as in the authors' code and in x-transformers.
        scaled: q·e is divided by √dim_head, as q·k is: the authors' default. x-transformers'
            and ours, false, is their ``--cope-nodiv``: there one step of Adam moves these logits
            √dim_head times as far.
        table_scale: multiplies q·e; dim_head^−1/2 does what ``scaled`` does.
        shared: one table (and mixing of heads) for all layers that have this scheme.
        biased_gates: beside a bias, gates see the biased logits; false: q·k alone, as in the
            authors' ``cope+rel``.
        backend: which implementation computes it, see `xcope.cope_attention`; all agree.
    """

    name: ClassVar[str] = "cope"
    title: ClassVar[str] = "Contextual positions (CoPE)"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "arXiv 2405.18719"
    formula: ClassVar[str] = "q·k + q·e[Σ_{t=j..i} σ(q·k_t)]"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = "attn_use_cope"
    upstream_options: ClassVar[dict[str, str]] = {
        "attn_cope_max_pos": "max_pos",
        "attn_cope_soft_onehot_pos": "soft_onehot",
        "attn_cope_talking_heads": "talking_heads",
    }

    beside_block: ClassVar[int] = CoPE.beside_block
    authors: ClassVar[Mapping[str, Any]] = {
        "max_pos": "block",
        "scaled": True,
        "biased_gates": False,
    }

    max_pos: int | str = 16
    soft_onehot: bool = False
    soft_onehot_temp: float = 0.05
    talking_heads: bool = False
    per_head: bool = False
    sep_keys: bool = False
    val_gates: bool = False
    init_std: float = 0.0
    scaled: bool = False
    table_scale: float = 1.0
    shared: bool = False
    biased_gates: bool = True
    backend: str = "auto"

    def itself(self) -> ContextualPosition:
        """This CoPE without what a subclass adds to it."""
        options = ContextualPosition.options()
        return ContextualPosition(**{name: getattr(self, name) for name in options})

    def build(self, geometry: Geometry) -> CoPE | None:
        """One layer's module; its table is (max_pos dim_head), or (heads max_pos dim_head)."""
        self.require(
            not (self.sep_keys and self.val_gates),
            "val_gates",
            "with sep_keys the gates have keys of their own; drop one of the two",
        )
        self.require_among("backend", ["auto", *BACKENDS])
        self.require_max_pos()
        self.require(0 <= self.init_std < math.inf, "init_std", "0 or more")
        self.require(self.soft_onehot_temp > 0, "soft_onehot_temp", "it must be above 0")
        self.require(0 < abs(self.table_scale) < math.inf, "table_scale", "a number but 0")
        return CoPE(
            geometry.dim_head,
            geometry.heads,
            self.max_pos,
            soft_onehot=self.soft_onehot,
            talking_heads=self.talking_heads,
            soft_onehot_temp=self.soft_onehot_temp,
            per_head=self.per_head,
            sep_keys=self.sep_keys,
            val_gates=self.val_gates,
            init_std=self.init_std,
            backend=self.backend,
            scaled=self.scaled,
            table_scale=self.table_scale,
            biased_gates=self.biased_gates,
        )
