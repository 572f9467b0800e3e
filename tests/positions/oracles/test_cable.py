"""CABLE against the paper's formula in plain loops, and against forgetting attention."""

import math

import pytest
import torch

import xcope
from xcope.positions import Geometry, scheme

GEOMETRY = Geometry(dim=6, heads=3, dim_head=8)


def test_the_papers_formula():
    module = scheme("cable", {"bias_init": 0.3, "init_std": 1.0}).build(GEOMETRY).double()
    x, linear = torch.randn(2, 7, 6).double(), module.to_forget_gates[0]
    got = module.dense(module.remember(x), 7)
    assert got.shape == (2, 3, 7, 7)
    for b in range(2):
        for h in range(3):
            z = [(linear.weight[h] @ x[b, t] + linear.bias[h]).item() for t in range(7)]
            for i in range(7):
                for j in range(i + 1):
                    expected = -sum(math.log(1 + math.exp(z[t])) for t in range(j + 1, i + 1))
                    assert got[b, h, i, j].item() == pytest.approx(expected, abs=1e-12)


def test_it_begins_as_the_authors_code():
    linear = scheme("cable").build(Geometry(dim=500, heads=40, dim_head=8)).to_forget_gates[0]
    assert (linear.bias == 0).all()
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_it_is_forgetting_with_another_gate():
    def model(position):
        return xcope.TransformerWrapper(
            num_tokens=20,
            max_seq_len=30,
            attn_layers=xcope.Decoder(
                dim=32, depth=2, heads=2, attn_dim_head=16, position=position
            ),
        ).eval()

    cable = model({"name": "cable", "init_std": 0.5, "bias_init": 0.7})
    weights = {
        key.replace(".cable.", ".data_dependent_alibi."): -value if ".cable." in key else value
        for key, value in cable.state_dict().items()
    }
    forgetting = model("forgetting")
    forgetting.load_state_dict(weights)
    tokens = torch.randint(20, (2, 30))
    torch.testing.assert_close(cable(tokens), forgetting(tokens))
