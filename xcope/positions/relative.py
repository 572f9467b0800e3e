"""Relative positions that the query asks for: a table of distances, dotted with the query.

Shaw, Uszkoreit, Vaswani, *Self-Attention with Relative Position Representations*, arXiv 1803.02155;
the baseline of CoPE's authors (``rel`` in their code).

    s_ij ← s_ij + r_i·e[min(i − j, max_pos − 1)]      r_i = q_i

It is CoPE with all gates 1, read one entry earlier, and computed as such: what is counted are the
keys that the query sees. Where a mask hides some between the key and the query they do not count,
so that a row that is padded, or a learned memory before it, stands where it does alone.

With ``width`` the query asks by a projection of its own, r_i = W x_i + b, of what the layer's
attention reads: then one table of few columns serves all heads. The Inkling models (2026) have it
16 wide, with nothing beyond the table (``beyond: zero``), and x-transformers
(``attn_use_rel_proj_pos_bias``) has both, too.

The table starts at zero, as CoPE's does. CoPE's authors start theirs as noise, dim_head^−1/2, share
it among the layers (``shared``), and divide its logits by √dim_head like the others (``scaled``);
without a size of its own (``rel_pos_max``) it is as long as the block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.ops.cope import BACKENDS, position_bias, positions, relative_attention
from xcope.positions.base import AttendInputs, Family, Geometry, Slot
from xcope.positions.registry import register
from xcope.positions.tables import BLOCK, Table, TableScheme

BEYOND = ("last", "zero")


class Relative(Table):
    """The table of one layer, and attention with it.

    Args:
        dim: of the decoder.
        heads: query heads.
        dim_head: of a head.
        max_pos: distances 0 … max_pos − 1; "block": see `Table`.
        width: of the projection r; None: queries ask themselves.
        beyond: "last": larger distances share the last entry; "zero": they get nothing.
        scaled: the table's logits are scaled like the others.
        init_std: the standard deviation with which the table begins.
        backend: of `xcope.ops.cope.relative_attention`.
    """

    takes_window = True
    takes_sink = True

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        max_pos: int | str,
        width: int | None = None,
        beyond: str = "last",
        scaled: bool = False,
        init_std: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            (dim_head if width is None else width,),
            max_pos,
            init_std=init_std,
            scaled=scaled,
            flag="relative_max_pos",
        )
        self.heads, self.width, self.beyond, self.backend = heads, width, beyond, backend
        self.remembers = width is not None
        if width is not None:
            self.to_r = nn.Linear(dim, heads * width)

    def remember(self, x: Tensor) -> Tensor:
        """r of each token, (b h n width); only those of later queries are read."""
        r: Tensor = self.to_r(x)
        return r.view(*r.shape[:2], self.heads, r.shape[2] // self.heads).transpose(1, 2)

    def _reader(self, q: Tensor, inputs: AttendInputs | None) -> Tensor:
        """r of the queries, (b h i c), in the dtype of q."""
        if self.width is None or inputs is None or inputs.remembered is None:
            return q
        r = inputs.remembered[:, :, inputs.remembered.shape[2] - q.shape[2] :]
        return (r if inputs.heads is None else r[:, inputs.heads]).to(q.dtype)

    def entries(self, scale: float) -> Tensor:
        """The table as it is read, (p c)."""
        table = self.table(scale)
        return F.pad(table, (0, 0, 0, 1)) if self.beyond == "zero" else table

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`; O(n) memory."""
        return relative_attention(
            q,
            k,
            v,
            self.entries(inputs.scale),
            r=None if self.width is None else self._reader(q, inputs),
            scale=inputs.scale,
            mask=inputs.mask,
            causal=inputs.causal,
            bias=inputs.bias,
            cu_seqlens=inputs.cu_seqlens,
            window=inputs.window,
            sink=inputs.sink,
            backend=self.backend,
        )

    def forward(self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            bias = position_bias(
                self._reader(q, inputs),
                torch.full_like(logits, torch.inf, dtype=wide),
                F.pad(self.entries(inputs.scale), (0, 0, 1, 0)),
                seen,
            )
        return bias.to(logits.dtype)

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """``positions``: the distance at which each key is read."""
        last = self.entries(inputs.scale).shape[0] - 1
        return {"positions": (positions(seen.to(logits.dtype), last + 2) - 1).clamp(0, last)}


@register
@dataclass(frozen=True, kw_only=True)
class RelativePositions(TableScheme):
    """``position: relative``.

    Args:
        max_pos: size of the table; "block": as many entries as tokens of a row in training.
        width: the query asks by a projection so wide; null: by itself.
        beyond: "last": distances beyond the table share its last entry; "zero": they get nothing.
        scaled: the table's logits are divided by √dim_head, as the others are.
        shared: one table for all layers.
        init_std: the standard deviation of the normal noise that the table begins with.
        backend: which implementation computes it, see `xcope.cope_attention`; all agree.
    """

    name: ClassVar[str] = "relative"
    title: ClassVar[str] = "Relative positions, asked for by the query"
    slot: ClassVar[Slot | None] = Slot.ATTEND
    family: ClassVar[Family] = Family.LEARNED
    paper: ClassVar[str] = "arXiv 1803.02155"
    formula: ClassVar[str] = "q·k + r·e[min(i − j, max_pos − 1)]"
    oracle: ClassVar[str] = "formula"
    excludes: ClassVar[Mapping[Slot | str, str]] = {
        "pope": "the table is as wide as a head, and PoPE's queries are twice as wide"
    }
    authors: ClassVar[Mapping[str, Any]] = {"max_pos": BLOCK, "scaled": True, "shared": True}

    max_pos: int | str = 128
    width: int | None = None
    beyond: str = "last"
    scaled: bool = False
    shared: bool = False
    init_std: float = 0.0
    backend: str = "auto"

    def build(self, geometry: Geometry) -> Relative:
        """One layer's module."""
        self.require_max_pos()
        self.require_among("backend", ["auto", *BACKENDS])
        self.require(self.width is None or self.width >= 1, "width", "1 or more, or null")
        self.require_among("beyond", BEYOND)
        self.require(0 <= self.init_std < math.inf, "init_std", "0 or more")
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("max_pos", "width", "beyond", "scaled", "init_std", "backend")
        }
        return Relative(geometry.dim, geometry.heads, geometry.dim_head, **options)
