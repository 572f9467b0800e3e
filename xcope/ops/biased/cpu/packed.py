"""A bias packed for the compiled kernels, and what they gather for the gradients of its vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xcope.ops.biased.cpu.unit import BY_DISTANCE, FREE, MARGIN, PACKED, PIECEWISE, ROWS, SEPARABLE
from xcope.ops.biased.forms import WITHOUT_GRADIENT, named, placed
from xcope.ops.biased.terms import ByDistance, Piecewise, Separable, Terms
from xcope.ops.tiling.threads import SMALLEST

NUMBERS = {type(None): FREE, Separable: SEPARABLE, ByDistance: BY_DISTANCE, Piecewise: PIECEWISE}


class Bias:
    """The addresses and sizes of a bias' vectors. Arguments as of `biased.cpu.eager.Bias`."""

    def __init__(
        self, terms: Terms | None, size: tuple[int, int, int, int], differentiated: bool = False
    ):
        b, h, _, j = size
        self.heads, self.keys = h, j
        self.free = j if terms is None else j - placed(terms)
        self.terms, self.sums = terms, {}
        self.packed = np.zeros(1, PACKED)
        self._pack(form=NUMBERS[type(terms)], heads=h, all_heads=b * h, wanted=differentiated)
        self.vectors = {} if terms is None else self._vectors(terms)
        for name, t in self.vectors.items():
            many = t.numel() // t.shape[-1] if t.numel() else 1
            self._pack(**{name: t.data_ptr(), "n_" + name: t.shape[-1], "many_" + name: many})
        if terms is not None and differentiated:
            chunks = 1 if torch.get_num_threads() <= h else ROWS // SMALLEST
            for name, t in self.vectors.items():
                if name not in WITHOUT_GRADIENT:
                    self.sums[name] = torch.zeros(chunks, b, h, t.shape[-1], dtype=torch.float32)
                    self._pack(**{"d_" + name: self.sums[name].data_ptr()})

    def _pack(self, **numbers: int) -> None:
        for name, number in numbers.items():
            self.packed[name] = number

    def _vectors(self, terms: Terms) -> dict[str, Tensor]:
        """The vectors as kernels read them."""
        vectors = named(terms)
        if isinstance(terms, ByDistance | Piecewise):
            table = vectors.pop("warp") if isinstance(terms, Piecewise) else terms.table
            table = table.view(-1, table.shape[-1])
            ends = [table[:, :1].expand(-1, MARGIN), table[:, -1:].expand(-1, MARGIN)]
            vectors["table"] = torch.cat([ends[0], table, ends[1]], dim=1)
            places = terms.q_pos, terms.k_pos
            self._pack(last=table.shape[-1] - 1, consecutive=all(map(_consecutive, places)))
            for name, pos in zip(("q_pos", "k_pos"), places, strict=True):
                vectors[name] = pos.clamp(-(2**29), 2**29).int()
        return {name: t.contiguous() for name, t in vectors.items()}

    def gradients(self) -> dict[str, Tensor]:
        """See `xcope.ops.biased.cpu.eager.Bias`."""
        found = {name: self._summed(name) for name in self.sums}
        if "table" in found and isinstance(self.terms, Piecewise):
            found["warp"] = found.pop("table")
        return found

    def _summed(self, name: str) -> Tensor:
        sums = self.sums[name].sum(0)
        if name == "table":
            before, sums, after = sums.tensor_split([MARGIN, sums.shape[-1] - MARGIN], dim=-1)
            sums[..., 0] += before.sum(-1)
            sums[..., -1] += after.sum(-1)
        name = "warp" if name == "table" and isinstance(self.terms, Piecewise) else name
        ndim, per_head = getattr(self.terms, name).ndim, name not in ("warp", "shrink")
        if not per_head:
            sums = sums.sum(1)
        return sums.sum(0) if ndim < sums.ndim else sums


def _consecutive(pos: Tensor) -> bool:
    return bool((pos.diff(dim=-1) == 1).all())
