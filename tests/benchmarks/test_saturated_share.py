"""The share of saturated pairs, as the operator reports it."""

import torch

from benchmarks.cope.costs import saturated_share
from benchmarks.cope.workloads import tensors


@torch.no_grad()
def test_share_of_saturated_pairs():
    def share(max_pos: int, few_gates: bool = False) -> float:
        return saturated_share(*tensors(512, max_pos, few_gates))

    assert share(1) == 1  # one position: nothing to count
    assert share(512) == 0  # a count of 511 needs gates that are wide open
    assert share(64, few_gates=True) == 0
    assert 0 < share(128) < share(8) < 1
