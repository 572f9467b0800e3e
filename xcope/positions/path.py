"""PaTH: each token reflects the queries that look back over it, so that places follow from content.

Yang et al., *PaTH Attention: Position Encoding via Accumulating Householder Transformations*,
arXiv 2505.16381.

    s_ij = scale · q_iᵀ H_i H_{i−1} … H_{j+1} k_j,   H_t = I − β_t w_t w_tᵀ / |w_t|²
    β_t = 2 σ(u_h·x_t + a_h)

x_t is what the layer's attention reads; w_t of each head comes from it by two matrices with a
narrow place between (``rank``), or by one (``rank: null``), and, if ``conv`` is set, by a
convolution over the last ``conv`` tokens, channel by channel, and a SiLU. At β = 0 a token does
nothing, at 1 it takes a direction away, at 2 it mirrors.

PaTH-FoX (``forget``) adds forgetting attention's bias, Σ_{t=j+1..i} log σ(w'_h·x_t + b_h). The
authors' code (flash-linear-attention) multiplies it with the scale of the logits, d^(−1/2), too:
``forget_scaled``.

Ours and the authors': they have ``conv: 3`` and ``rank: 32`` (full where key heads are shared),
``forget_bias_init: 0``, and all weights begin as normal noise of 0.02; here there is no
convolution unless it is asked for, forget gates begin as those of `forgetting`, at 5, and weights
as PyTorch's. They have a w for each key head, we one for each query head.

Nothing here knows a token's place. A cache holds w and β of each token beside its key, so that any
part of it can be dropped; a step of decoding costs O(n d). Attention is
`xcope.ops.carried.path_attention`, by the authors' UT transform in blocks: what a group of
queries goes through, a state for each block of keys before it, is held for one group at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.ops.documents import document_of
from xcope.positions.base import AttendInputs, Geometry
from xcope.positions.carried import CarriedQueries, CarriedScheme
from xcope.positions.registry import register


class Path(CarriedQueries):
    """The reflections of one layer.

    Args:
        dim: of the decoder.
        heads: of the decoder.
        dim_head: of a head.
        rank: of the projection to w; None: full.
        conv: tokens that a w is made from; below 2: its own.
        beta_bias_init: where a begins; 0: β = 1.
        forget_bias_init: see `CarriedQueries`.
        forget_scaled: see `CarriedQueries`.
    """

    kind = "path"

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        rank: int | None = 32,
        conv: int = 0,
        beta_bias_init: float = 0.0,
        forget_bias_init: float | None = None,
        forget_scaled: bool = False,
    ) -> None:
        super().__init__(dim, heads, forget_bias_init, forget_scaled)
        self.heads, self.dim_head = heads, dim_head
        inner = heads * dim_head
        projections = (dim, inner) if rank is None else (dim, rank, inner)
        self.to_w = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(projections)))
        self.to_beta = nn.Linear(dim, heads)
        nn.init.constant_(self.to_beta.bias, beta_bias_init)
        self.conv = conv
        if conv > 1:
            # the last is that of the token itself
            self.taps = nn.Parameter(torch.empty(heads, dim_head, conv))
            nn.init.uniform_(self.taps, -(conv**-0.5), conv**-0.5)

    def of_token(self, x: Tensor) -> Tensor:
        """w before the convolution, and then β."""
        w, beta = self.to_w(x), self.to_beta(x)
        wide = torch.promote_types(w.dtype, torch.float32)
        w = w.view(*x.shape[:2], self.heads, self.dim_head).transpose(1, 2).to(wide)
        return torch.cat((w, 2 * beta.mT[..., None].to(wide).sigmoid()), dim=-1)

    def moves(self, kept: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """w and β."""
        if self.conv < 2:
            return kept
        w = F.silu(self.convolved(kept[..., :-1], cu_seqlens))
        return torch.cat((w, kept[..., -1:]), dim=-1)

    def convolved(self, w: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Σ_s conv_s w_{t−s} over the last tokens of the same document."""
        taps = self.taps.to(w.dtype).unbind(-1)[::-1]
        document = None if cu_seqlens is None else document_of(cu_seqlens, w.shape[2])
        out = w * taps[0][:, None]
        for s, tap in enumerate(taps[1:], 1):
            before = F.pad(w, (0, 0, s, 0))[:, :, : w.shape[2]]
            if document is not None:
                same = F.pad(document, (s, 0), value=-1)[: w.shape[2]] == document
                before = before * same[:, None]
            out = out + before * tap[:, None]
        return out

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``reflections``: Σ_{t=j+1..i} β_t, what lies between key and query; 0 if not seen."""
        if inputs.remembered is None:
            return {}
        beta = inputs.remembered[..., -1 if self.forgetting is None else -2]
        sums = beta.cumsum(-1)
        between = sums[..., -q.shape[2] :, None] - sums[..., None, :]
        return {"reflections": between.masked_fill(~seen, 0.0)}


@register
@dataclass(frozen=True, kw_only=True)
class PathAttention(CarriedScheme):
    """``position: path``.

    Args:
        rank: of the projection to w; null: full.
        conv: tokens that a w is made from, by a convolution; 0: its own only. The authors have 3.
        beta_bias_init: where the bias of β begins; 0 for β = 1.
        forget: add forgetting attention's bias (PaTH-FoX).
        forget_bias_init: where the forget gates' bias begins; more forgets less. The authors have
            0.
        forget_scaled: multiply what is forgotten with the scale of the logits, as the authors' code
            does.
    """

    name: ClassVar[str] = "path"
    title: ClassVar[str] = "PaTH attention"
    paper: ClassVar[str] = "arXiv 2505.16381"
    formula: ClassVar[str] = "qᵀ Π_{t=j+1..i} (I − β_t w_t w_tᵀ) k"
    oracle: ClassVar[str] = "formula"
    authors: ClassVar[Mapping[str, Any]] = {
        "conv": 3,
        "forget_bias_init": 0.0,
        "forget_scaled": True,
    }

    rank: int | None = 32
    conv: int = 0
    beta_bias_init: float = 0.0
    forget_scaled: bool = False

    def build(self, geometry: Geometry) -> Path:
        """The projections of one layer."""
        self.require(self.rank is None or self.rank >= 1, "rank", "1 or more, or null")
        self.require(self.conv >= 0, "conv", "0 or more")
        return Path(
            geometry.dim,
            geometry.heads,
            geometry.dim_head,
            self.rank,
            self.conv,
            self.beta_bias_init,
            self.gates_begin,
            self.forget_scaled,
        )
