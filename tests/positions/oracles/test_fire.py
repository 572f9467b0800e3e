"""FIRE against the paper's formula in plain loops."""

import math

import pytest
import torch

from xcope.positions import Geometry, scheme


def formula(module, q_pos, k_pos):
    c = module.c.item()
    threshold = abs(module.L_multiplier.item() * module.init_l)
    first, _, second = module.mlp
    w1, b1 = first.weight[:, 0].tolist(), first.bias.tolist()
    w2, b2 = second.weight.tolist(), second.bias.tolist()

    def psi(x):
        return math.log(1 + abs(c * x))

    def network(t, h):
        hidden = [max(w * t + b, 0.0) for w, b in zip(w1, b1, strict=True)]
        return sum(w * u for w, u in zip(w2[h], hidden, strict=True)) + b2[h]

    return torch.tensor(
        [
            [
                [network(psi(i - j) / (psi(max(i, threshold)) + 1e-6), h) for j in k_pos.tolist()]
                for i in q_pos.tolist()
            ]
            for h in range(len(b2))
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(
    ("c", "multiplier"), [(0.1, 1.0), (-0.4, 0.2), (5.0, -1.5), (0.1, 0.0), (0.0, 1.0)]
)
def test_the_papers_formula(c, multiplier):
    module = scheme("fire", {"mlp_width": 7, "init_l": 20.0}).build(Geometry(8, 3, 8)).double()
    with torch.no_grad():
        module.c.fill_(c)
        module.L_multiplier.fill_(multiplier)
    q_pos, k_pos = torch.tensor([-3, 0, 1, 4, 20, 21, 90]), torch.tensor([-5, 0, 1, 3, 20, 33])
    bias = module.dense(q_pos, k_pos)
    torch.testing.assert_close(bias, formula(module, q_pos, k_pos))
    bias.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_it_begins_as_the_papers_code():
    module = scheme("fire").build(Geometry(8, 3, 8))
    assert module.c.item() == pytest.approx(0.1)
    assert module.L_multiplier.item() * module.init_l == 512.0
    assert module.mlp[0].weight.shape == (32, 1)
    assert module.mlp[2].weight.shape == (3, 32)


def test_all_of_c_threshold_and_network_learn():
    module = scheme("fire", {"init_l": 6.0}).build(Geometry(8, 3, 8))
    pos = torch.arange(12)
    module.dense(pos, pos).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
