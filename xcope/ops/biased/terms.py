"""What an index bias is made of: a few vectors from which any tile of it can be computed.

A bias b_ij, added to the logit of query i and key j, is never held whole. Each form below says
how b_ij follows from vectors of length O(n); schemes compute those vectors from their parameters
with plain autograd, and the operator gives gradients to the vectors.

Shape notation: b batch, h query heads, i queries, j keys (queries are aligned to the end of the
keys), D distances. Vectors over keys may be shorter than the keys: the keys before them (learned
memories, say) have no place, and their bias is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Separable:
    """b_ij = row_i − key_j.

    Args:
        row: (h i) or (b h i), floating point.
        key: (h j) or (b h j), dtype of ``row``.
    """

    row: Tensor
    key: Tensor

    def of_heads(self, heads: Tensor) -> Separable:
        """The bias of these heads, int64 (h'), in this order."""
        return Separable(self.row[..., heads, :], self.key[..., heads, :])

    def of_tokens(self, tokens: slice) -> Separable:
        """The bias among these of i = j tokens: start and stop of a document."""
        keys = _keys_of(tokens, self.row, self.key)
        return Separable(self.row[..., tokens], self.key[..., keys])


@dataclass(frozen=True)
class ByDistance:
    """b_ij = table[h, δ_ij], δ_ij = q_pos_i − k_pos_j clamped to 0 … D − 1.

    Past the table the bias is constant.

    Args:
        table: (h D), floating point.
        q_pos: places of the queries, int64, (i) or (b i).
        k_pos: places of the keys, int64, (j) or (b j).
    """

    table: Tensor
    q_pos: Tensor
    k_pos: Tensor

    def of_heads(self, heads: Tensor) -> ByDistance:
        """The bias of these heads, int64 (h'), in this order."""
        return replace(self, table=self.table[heads])

    def of_tokens(self, tokens: slice) -> ByDistance:
        """The bias among these of i = j tokens: start and stop of a document."""
        keys = _keys_of(tokens, self.q_pos, self.k_pos)
        return replace(self, q_pos=self.q_pos[..., tokens], k_pos=self.k_pos[..., keys])


@dataclass(frozen=True)
class Piecewise:
    """b_ij = slope[h, s] t + offset[h, s], where t = warp[δ_ij] · shrink_i lies in segment s.

    A multilayer perceptron of one number with one hidden ReLU layer is such a function. δ_ij as
    in `ByDistance`. Segment s holds the t with exactly s knots below or at it; the bias is
    continuous across knots, so that knots themselves need no gradient.

    Args:
        slope: (h S), floating point.
        offset: (h S).
        knots: (S − 1), ascending.
        warp: (D).
        shrink: (i) or (b i).
        q_pos: places of the queries, int64, (i) or (b i).
        k_pos: places of the keys, int64, (j) or (b j).
    """

    slope: Tensor
    offset: Tensor
    knots: Tensor
    warp: Tensor
    shrink: Tensor
    q_pos: Tensor
    k_pos: Tensor

    def of_heads(self, heads: Tensor) -> Piecewise:
        """The bias of these heads, int64 (h'), in this order."""
        return replace(self, slope=self.slope[heads], offset=self.offset[heads])

    def of_tokens(self, tokens: slice) -> Piecewise:
        """The bias among these of i = j tokens: start and stop of a document."""
        keys = _keys_of(tokens, self.q_pos, self.k_pos)
        return replace(
            self,
            shrink=self.shrink[..., tokens],
            q_pos=self.q_pos[..., tokens],
            k_pos=self.k_pos[..., keys],
        )


Terms: TypeAlias = Separable | ByDistance | Piecewise


def _keys_of(tokens: slice, of_queries: Tensor, of_keys: Tensor) -> slice:
    """Where these tokens lie in a vector over keys, which lacks the keys before the first place."""
    free = of_queries.shape[-1] - of_keys.shape[-1]
    return slice(max(0, tokens.start - free), max(0, tokens.stop - free))
