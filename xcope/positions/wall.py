"""Wall attention: each channel of a head forgets at a rate of its own, token by token.

Averbuch and Pai, Tilde Research, in flash-linear-attention (``fla/ops/wall_attn``, 2026).

    s_ij = scale · Σ_c q_ic k_jc exp(Σ_{t=j+1..i} g_tc),   g_tc = log σ(w_c·x_t + b_c)

x_t is what the layer's attention reads; c goes over the channels of a head. With P_i the sum of
g / log 2 up to i, the factor is 2^(P_ic − P_jc), as their code has it. With all g = 0 it is
attention without positions. With ``forget`` the bias of forgetting attention is added (their
``use_scalar_gate``).

Ours and the authors': b begins at 8 in both, so that a layer begins near attention without
positions (half of a channel is left after 2066 tokens); their weights begin as normal noise of
0.02, ours as PyTorch's. Their scalar gate's bias begins at 8, too, ours as that of `forgetting`,
at 5.

Nothing here knows a token's place. A cache holds g of each token beside its key; a step of decoding
costs O(n d). Attention is `xcope.ops.carried.wall_attention`: blocks in blocks, with the place
between a block of keys and a later query as the point that both are told from, so that no exponent
is above 0; what a group of queries goes through is held for one group at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.positions.base import AttendInputs, Geometry
from xcope.positions.carried import CarriedQueries, CarriedScheme
from xcope.positions.registry import register


class Wall(CarriedQueries):
    """The decays of one layer.

    Args:
        dim: of the decoder.
        heads: of the decoder.
        dim_head: of a head.
        bias_init: where b begins.
        forget_bias_init: see `CarriedQueries`.
    """

    kind = "wall"

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        bias_init: float = 8.0,
        forget_bias_init: float | None = None,
    ) -> None:
        super().__init__(dim, heads, forget_bias_init)
        self.heads, self.dim_head = heads, dim_head
        self.to_decays = nn.Linear(dim, heads * dim_head)
        nn.init.constant_(self.to_decays.bias, bias_init)

    def of_token(self, x: Tensor) -> Tensor:
        """g, (b h n d)."""
        gates: Tensor = self.to_decays(x)
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        # as log σ, which keeps one tensor more for the backward
        decays = -F.softplus(-gates)
        return decays.view(*x.shape[:2], self.heads, self.dim_head).transpose(1, 2)

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``left``: of a channel between key and query, the channels' mean; 0 if not seen."""
        g = inputs.remembered
        if g is None:
            return {}
        sums = (g if self.forgetting is None else g[..., :-1]).double().cumsum(2)
        left = logits.new_zeros(())
        for c in range(sums.shape[-1]):
            between = sums[:, :, -q.shape[2] :, None, c] - sums[:, :, None, :, c]
            left = left + between.masked_fill(~seen, -torch.inf).exp() / sums.shape[-1]
        return {"left": left.to(logits.dtype)}


@register
@dataclass(frozen=True, kw_only=True)
class WallAttention(CarriedScheme):
    """``position: wall``.

    Args:
        bias_init: where the decays' bias begins; more forgets less.
        forget: add the bias of forgetting attention.
        forget_bias_init: where its gates' bias begins; more forgets less. The authors have 8.
    """

    name: ClassVar[str] = "wall"
    title: ClassVar[str] = "Wall attention"
    paper: ClassVar[str] = "flash-linear-attention, 2026"
    formula: ClassVar[str] = "Σ_c q_c k_c exp(Σ_{t=j+1..i} log σ(w_c·x_t + b_c))"
    oracle: ClassVar[str] = "formula"
    authors: ClassVar[Mapping[str, Any]] = {"bias_init": 8.0, "forget_bias_init": 8.0}

    bias_init: float = 8.0

    def build(self, geometry: Geometry) -> Wall:
        """The projection of one layer."""
        return Wall(
            geometry.dim, geometry.heads, geometry.dim_head, self.bias_init, self.gates_begin
        )
