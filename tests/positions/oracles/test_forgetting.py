"""Forgetting attention against the paper's formula in loops and x-transformers' own module."""

import math

import pytest
import torch
from x_transformers.x_transformers import DataDependentAlibi

from xcope.errors import FlagError
from xcope.positions import Geometry, parse, scheme

GEOMETRY = Geometry(dim=6, heads=3, dim_head=8)


def built(**options):
    return scheme("forgetting", options).build(GEOMETRY)


def test_the_papers_formula():
    module = built(bias_init=0.5, post_log_scale=2.0).double()
    x = torch.randn(2, 7, 6).double()
    linear = module.to_forget_gates[0]
    got = module.dense(module.remember(x), 7)
    assert got.shape == (2, 3, 7, 7)
    for b in range(2):
        for h in range(3):
            w, bias = linear.weight[h], linear.bias[h]
            f = [torch.sigmoid(w @ x[b, t] + bias).item() for t in range(7)]
            for i in range(7):
                for j in range(i + 1):
                    expected = sum(2.0 * math.log(f[t]) for t in range(j + 1, i + 1))
                    assert got[b, h, i, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"bias_init": 1.0, "post_log_scale": 0.3}], ids=str)
def test_x_transformers(options):
    theirs, ours = DataDependentAlibi(6, 3, **options), built(**options)
    torch.testing.assert_close(ours.to_forget_gates[0].bias, theirs.to_forget_gates[0].bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 30, 6, requires_grad=True)
    expected, got = theirs(x), ours.dense(ours.remember(x), 30)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(got).tril()
    inputs = [[x, *module.parameters()] for module in (theirs, ours)]
    for a, b in zip(
        *(
            torch.autograd.grad((bias * weight).sum(), these)
            for bias, these in zip((expected, got), inputs, strict=True)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("i", [1, 2, 5, 12])
def test_vectors_agree_with_the_definition_and_with_a_cache(i):
    module = built(bias_init=0.0).double()
    x = torch.randn(2, 12, 6).double()
    gates = module.remember(x)
    cached = torch.cat((module.remember(x[:, :-i]), module.remember(x[:, -i:])), dim=-1)
    torch.testing.assert_close(cached, gates)
    terms = module.terms(cached, i)
    assert terms.row.shape == (2, 3, i)
    assert terms.key.shape == (2, 3, 12)
    tiled = terms.row[..., :, None] - terms.key[..., None, :]
    everything = module.dense(gates, 12)
    torch.testing.assert_close(tiled, everything[..., -i:, :])
    torch.testing.assert_close(module.dense(cached, i), everything[..., -i:, :])


def test_gradients_are_those_of_the_sums():
    module = built(bias_init=0.0).double()
    gates = torch.randn(1, 3, 6).double().requires_grad_()
    later = torch.arange(6)
    # (i j t): whether token t is after key j, and not after query i
    between = (later > later[:, None]) & (later <= later[:, None, None])
    direct = torch.einsum("bht,ijt->bhij", gates, between.double())
    weight = torch.randn(3, 6, 6).double().tril()
    expected = torch.autograd.grad((direct * weight).sum(), gates)
    got = torch.autograd.grad((module.dense(gates, 6) * weight).sum(), gates)
    torch.testing.assert_close(got, expected)


def test_long_texts_keep_the_digits_after_the_point():
    n = 32768
    module = built()
    gates = -torch.rand(1, 3, n)
    exact = gates.double().cumsum(-1)
    one = module.dense(gates, 1)
    torch.testing.assert_close(
        one[0, :, 0, -100:].double(), (exact[..., -1:] - exact[..., -100:])[0], atol=1e-5, rtol=0
    )
    terms = module.terms(gates, n)
    neighbours = (terms.row[..., 1:] - terms.key[..., :-1]).double()
    # half a unit in the last place of c, at both: c reaches n/4 on either side of the middle
    worst = torch.finfo(torch.float32).eps * n / 4
    torch.testing.assert_close(neighbours, gates[..., 1:].double(), atol=worst, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_gates_of_low_precision_are_summed_in_float32(autocast):
    module = built() if autocast else built().bfloat16()
    x = torch.randn(1, 5, 6) if autocast else torch.randn(1, 5, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        gates = module.remember(x)
        terms = module.terms(gates, 5)
    assert gates.dtype == terms.row.dtype == terms.key.dtype == torch.float32


def test_no_second_bias_at_the_same_heads():
    with pytest.raises(FlagError, match="'forgetting' and 'alibi'"):
        parse(["forgetting", "alibi"])
