"""KERPLE against the paper's formulas in plain loops."""

import math

import pytest
import torch

from xcope.positions import Geometry, scheme
from xcope.positions.kerple import KINDS


def built(kind, heads=3):
    module = scheme("kerple", {"kind": kind}).build(Geometry(dim=8, heads=heads, dim_head=8))
    return module.double()


def formula(kind, r1, r2, q_pos, k_pos):
    def kernel(i, j, a, b):
        delta = abs(i - j)
        return -a * math.log(1 + b * delta) if kind == "log" else -a * delta**b

    return torch.tensor(
        [
            [[kernel(i, j, a, b) for j in k_pos.tolist()] for i in q_pos.tolist()]
            for a, b in zip(r1.tolist(), r2.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_formula(kind):
    module = built(kind)
    q_pos, k_pos = torch.tensor([4, 0, 77]), torch.tensor([0, 2, 3, 9, 50])
    expected = formula(kind, module.r1, module.r2, q_pos, k_pos)
    torch.testing.assert_close(module.dense(q_pos, k_pos), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_begin_as_in_the_papers_code(kind):
    module = built(kind, heads=4000)
    high = {"log": (2, 1), "power": (1, 2)}[kind]
    for r, most in zip((module.r1, module.r2), high, strict=True):
        assert r.min() >= 0.0099
        assert 0.98 * most < r.max() <= most
        assert r.mean().item() == pytest.approx(most / 2, abs=0.03 * most)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_stay_within_their_bounds_and_keep_a_gradient(kind):
    module = built(kind)
    with torch.no_grad():
        module.raw_r1.copy_(torch.tensor([-30.0, 0.0, 30.0]))
        module.raw_r2.copy_(torch.tensor([-30.0, 0.0, 30.0]))
    pos = torch.arange(5)
    module.dense(pos, pos).sum().backward()
    for parameter in (module.raw_r1, module.raw_r2):
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).all()
    assert (module.r1 > 0).all()
    assert (module.r2 > 0).all()
    assert kind == "log" or (module.r2 <= 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_distance_zero_has_bias_zero_and_a_finite_gradient(kind):
    module = built(kind)
    bias = module.dense(torch.tensor([3]), torch.tensor([3]))
    bias.sum().backward()
    assert (bias == 0).all()
    for parameter in module.parameters():
        assert (parameter.grad == 0).all()
