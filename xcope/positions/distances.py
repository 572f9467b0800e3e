"""What biases of the distance between query and key have in common; no scheme of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from xcope.ops.terms import ByDistance
from xcope.positions.base import FINE, IndexBias


def distances(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """q_pos_i − k_pos_j, (i j) or (b i j); below 0 where a key stands after its query."""
    return q_pos[..., :, None] - k_pos[..., None, :]


def real(distance: Tensor, like: Tensor) -> Tensor:
    """Distances, or what is computed with them, in the dtype of ``like``, at least float32.

    bfloat16 and float16 cannot tell large distances apart.
    """
    return distance.to(torch.promote_types(like.dtype, torch.float32))


def tabulated(curve: Callable[[Tensor], Tensor], distance: Tensor) -> Tensor:
    """curve(distance) where the curve is costly: computed once for each distance that may occur.

    Args:
        curve: (…) → (… h).
        distance: int64, or multiples of 1 / FINE; any shape.

    Returns:
        (… h).
    """
    if distance.is_floating_point():
        whole = (distance * FINE).round().long()
        return tabulated(lambda steps: curve(steps / FINE), whole)
    if distance.numel() == 0:
        return curve(distance)
    low, high = (int(end) for end in distance.aminmax())
    if high - low >= distance.numel():  # far apart, as places that a caller chose may be
        return curve(distance)
    table = curve(torch.arange(low, high + 1, device=distance.device))
    return table[distance - low]


def in_table(size: int, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distances of a table, and places whose differences are its indices.

    Args:
        size: the distances are below it.
        q_pos: int64, or multiples of 1 / FINE.
        k_pos: likewise.

    Returns:
        Distances (D), the queries' places and the keys', int64.
    """
    if not k_pos.is_floating_point():
        return torch.arange(size, device=q_pos.device), q_pos, k_pos
    steps = torch.arange(size * FINE, device=q_pos.device)
    whole_q, whole_k = ((pos * FINE).round().long() for pos in (q_pos, k_pos))
    return steps / FINE, whole_q, whole_k


class DistanceBias(IndexBias):
    """A bias that is a curve over the distance, one for each head."""

    @abstractmethod
    def curve(self, distance: Tensor) -> Tensor:
        """The formula.

        Args:
            distance: i − j, int64 or real, any shape; below 0 where a key stands after its query.

        Returns:
            (… h).
        """

    def dense(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """See `IndexBias`."""
        return self.curve(distances(q_pos, k_pos)).movedim(-1, -3)

    def terms(self, q_pos: Tensor, k_pos: Tensor, span: int) -> ByDistance:
        """See `IndexBias`: the curve as a table."""
        distance, q_pos, k_pos = in_table(self.size(span), q_pos, k_pos)
        return ByDistance(self.curve(distance).mT.contiguous(), q_pos, k_pos)

    def size(self, span: int) -> int:
        """How many whole distances the table needs."""
        return span
