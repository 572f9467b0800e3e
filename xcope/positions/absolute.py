"""Learned absolute positions: a table of vectors, one per place, added to the token embedding.

Gehring et al., *Convolutional Sequence to Sequence Learning*, arXiv 1705.03122; Devlin et al.,
arXiv 1810.04805.

    x_i ← x_i + e_i / √dim

The division is x-transformers' (``scaled``), whose e begins with standard deviation 1. BERT and
GPT-2 add e_i itself, which begins with 0.02: ``start: authors``. Under Adam, whose steps do not
depend on the scale of the gradient, e_i / √dim moves √dim times less in each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.positions.base import AddedToInput, Geometry, IndexedScheme, Slot
from xcope.positions.registry import register


class AbsolutePositions(AddedToInput):
    """The table ``emb`` (max_seq_len dim); inputs longer than it are refused.

    Args:
        dim: of the embedding.
        max_seq_len: rows of the table.
        l2norm: normalise each row to length 1 (x-transformers' ``l2norm_embed``).
        scaled: divide each row by √dim, unless they are normalised.
        std: standard deviation with which the table begins; where rows are normalised, 1e-5 if it
            is 1.
    """

    def __init__(
        self,
        dim: int,
        max_seq_len: int,
        l2norm: bool = False,
        scaled: bool = True,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.l2norm = l2norm
        self.scale = dim**-0.5 if scaled and not l2norm else 1.0
        self.emb = nn.Embedding(max_seq_len, dim)
        if l2norm or std != 1:
            nn.init.normal_(self.emb.weight, std=1e-5 if std == 1 else std)

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """See `AddedToInput`. Raises FlagError when the table has no row for a place."""
        end = offset + x.shape[1]
        if pos is None and end > self.max_seq_len:
            raise FlagError(
                "max_seq_len",
                f"the input reaches position {end}, but learned absolute positions end at "
                f"max_seq_len={self.max_seq_len}: shorten the input, raise max_seq_len before "
                "training, or choose a scheme without a table of places",
            )
        if pos is not None and pos.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check(pos)
        emb = self.emb(self.places(x, pos, seq_start_pos, offset).clamp(min=0)) * self.scale
        return F.normalize(emb, dim=-1) if self.l2norm else emb

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """See `AddedToInput`; places beyond a table begin as in a fresh one."""
        weight = self.emb.weight
        if name != "emb.weight" or old.shape[1:] != weight.shape[1:]:
            return None
        return torch.cat((old[: len(weight)], weight[len(old) :].to(old.device)))

    def _check(self, pos: Tensor) -> None:
        low, high = (int(end) for end in pos.aminmax()) if pos.numel() else (0, 0)
        if low < 0 or high >= self.max_seq_len:
            raise FlagError(
                "pos",
                f"pos has places from {low} to {high}, but learned absolute positions are a table "
                f"of the places 0 to {self.max_seq_len - 1}",
            )


@register
@dataclass(frozen=True, kw_only=True)
class Absolute(IndexedScheme):
    """``position: absolute``.

    Args:
        l2norm: normalise each vector of the table.
        scaled: divide each vector by √dim, as x-transformers; BERT and GPT-2 do not.
        init_std: standard deviation with which the table begins: 1 as x-transformers; 0.02 in BERT
            and GPT-2.
    """

    name: ClassVar[str] = "absolute"
    title: ClassVar[str] = "Learned absolute positions"
    slot: ClassVar[Slot | None] = Slot.INPUT
    paper: ClassVar[str] = "arXiv 1705.03122"
    formula: ClassVar[str] = "x_i + e_i/√dim"
    oracle: ClassVar[str] = "x-transformers"

    authors: ClassVar[Mapping[str, Any]] = {"scaled": False, "init_std": 0.02}
    whole_places: ClassVar[str | None] = "a table has a vector for each"

    l2norm: bool = False
    scaled: bool = True
    init_std: float = 1.0

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """What x-transformers does unless told otherwise."""
        return {}, {}

    def build(self, geometry: Geometry) -> AbsolutePositions:
        """The table, ``geometry.max_seq_len`` rows, or ``random_max`` if these are more."""
        if geometry.max_seq_len < 1:
            raise FlagError(
                "max_seq_len",
                f"max_seq_len={geometry.max_seq_len} is not allowed with position 'absolute': its "
                "table needs at least one row",
            )
        self.require(self.init_std >= 0, "init_std", "0 or more")
        rows = max(geometry.max_seq_len, self.random_max or 0)
        module = AbsolutePositions(geometry.dim, rows, self.l2norm, self.scaled, self.init_std)
        module.draw = self.draw
        return module
