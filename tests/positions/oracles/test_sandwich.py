"""Sandwich against the inner products of sinusoidal positions, in plain loops."""

import math

import pytest
import torch

from xcope.positions import Geometry, scheme


def sinusoidal(place, dim, base):
    angles = [place / base ** (2 * m / dim) for m in range(dim // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize(("dim", "base"), [(128, 10000.0), (2, 7.0), (10, 100.0)])
def test_the_papers_formula(heads, dim, base):
    module = scheme("sandwich", {"dim": dim, "base": base}).build(Geometry(8, heads, 8)).double()
    q_pos, k_pos = torch.tensor([0, 3, 50, 700]), torch.tensor([0, 1, 9, 50, 90])
    q, k = (
        torch.tensor([sinusoidal(place, dim, base) for place in pos.tolist()], dtype=torch.float64)
        for pos in (q_pos, k_pos)
    )
    for h, bias in enumerate(module.dense(q_pos, k_pos), start=1):
        compression_ratio = 8 * h / heads
        expected = (q @ k.T - dim / 2) / compression_ratio
        torch.testing.assert_close(bias, expected, atol=1e-6, rtol=1e-6)


def test_the_nearest_key_has_bias_zero_and_no_other_more():
    module = scheme("sandwich").build(Geometry(8, 8, 8))
    pos = torch.arange(3000)
    bias = module.dense(pos[-1:], pos)
    assert (bias[..., -1] == 0).all()
    assert (bias[..., :-1] < 0).all()
    assert not module.state_dict()
