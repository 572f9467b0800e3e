"""Stick-breaking attention: each key takes its share of what nearer keys have left; no softmax.

Tan, Yang, Shen et al., *Scaling Stick-Breaking Attention: An Efficient
Implementation and In-depth Study*, arXiv 2410.17980.

    β_ij = sigmoid(s_ij)
    A_ij = β_ij Π_{j<t<i} (1 − β_it)               out_i = Σ_{j<i} A_ij v_j

So the nearest key that fits gets the attention: there are no positions, and nothing ends at the
training length. A token does not see itself; what is left of its stick goes to its own value
(``remainder``, as in the authors' models) or is lost. With ``attend_current`` its own key breaks
its share off like the others.

Computed in logarithms, log A_ij = s_ij − Σ_{j≤t<i} log(1 + e^s_it), by the walk that computes CoPE
(`xcope.ops.cope`): one number is carried for each row, and once it says that nothing is left the
keys before are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xcope.ops.cope import BACKENDS, log_shares, stick_breaking_attention
from xcope.positions.base import AttendInputs, AttendModule, Geometry, Scheme, Slot
from xcope.positions.registry import register


class StickBreaking(AttendModule):
    """Attention of one layer; nothing is learned.

    Args:
        attend_current: the query's own key breaks its share off.
        remainder: what is left goes to the own value.
        backend: of `xcope.ops.cope.stick_breaking_attention`.
    """

    softmax = False
    takes_window = True

    def __init__(
        self, attend_current: bool = False, remainder: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.attend_current, self.remainder, self.backend = attend_current, remainder, backend

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`; O(n) memory."""
        return stick_breaking_attention(
            q,
            k,
            v,
            own=self.attend_current,
            remainder=self.remainder,
            scale=inputs.scale,
            mask=inputs.mask,
            causal=inputs.causal,
            bias=inputs.bias,
            cu_seqlens=inputs.cu_seqlens,
            window=inputs.window,
            backend=self.backend,
        )

    def forward(self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`: what makes logarithms of weights of the logits."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wide = wide.masked_fill(~seen, 0.0)
        shares = log_shares(wide, seen, own=self.attend_current, remainder=self.remainder)
        return (shares - wide).to(logits.dtype)

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``gates`` β_ij, 0 where a key is not seen."""
        return {"gates": logits.sigmoid().masked_fill(~seen, 0.0)}


@register
@dataclass(frozen=True, kw_only=True)
class StickBreakingAttention(Scheme):
    """``position: stick_breaking``.

    Args:
        attend_current: a token's own key breaks its share off, as the others do.
        remainder: what is left goes to the token's own value; false: it is lost.
        backend: which implementation computes it, see `xcope.cope_attention`; all agree.
    """

    name: ClassVar[str] = "stick_breaking"
    title: ClassVar[str] = "Stick-breaking attention"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    paper: ClassVar[str] = "arXiv 2410.17980"
    formula: ClassVar[str] = "β_ij Π_{j<t<i} (1 − β_it), β = σ(q·k)"
    oracle: ClassVar[str] = "formula"

    excludes: ClassVar[Mapping[Slot | str, str]] = {
        Slot.SINK: "its weights are no softmax of which a sink could have a share"
    }

    attend_current: bool = False
    remainder: bool = True
    backend: str = "auto"

    def build(self, geometry: Geometry) -> StickBreaking:
        """One layer's module."""
        self.require_among("backend", ["auto", *BACKENDS])
        return StickBreaking(self.attend_current, self.remainder, self.backend)
