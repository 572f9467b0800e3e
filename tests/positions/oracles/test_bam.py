"""BAM against the paper's generalized Gaussian in plain loops."""

import math

import pytest
import torch

from xcope.errors import FlagError
from xcope.positions import Geometry, scheme
from xcope.positions.alibi import alibi_slopes

GEOMETRY = Geometry(dim=8, heads=4, dim_head=8)


def built(**options):
    return scheme("bam", options).build(GEOMETRY).double()


def drawn(**options):
    module = built(**options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    return module


def formula(module, q_pos, k_pos):
    """−(|j − i − μ| / α)^β with α = exp(−θα / β): the paper's shape, scale and location."""
    out = torch.zeros(4, len(q_pos), len(k_pos), dtype=torch.float64)
    for h in range(4):
        theta, beta = module.theta_alpha[h].item(), module.theta_beta[h].item()
        mu = math.exp(module.theta_mu[h].item()) - math.exp(-module.theta_mu[h].item())
        alpha = math.exp(-theta / beta)
        for a, i in enumerate(q_pos.tolist()):
            for b, j in enumerate(k_pos.tolist()):
                out[h, a, b] = -(((abs(j - i - mu) + 1e-5) / alpha) ** beta)
    return out


@pytest.mark.parametrize("train_mu", [False, True])
def test_the_papers_formula_also_where_a_key_stands_after_its_query(train_mu):
    module = drawn(train_mu=train_mu, mu_init=0.4)
    q_pos, k_pos = torch.tensor([4, 0, 77]), torch.tensor([0, 2, 3, 9, 50])
    torch.testing.assert_close(module.dense(q_pos, k_pos), formula(module, q_pos, k_pos))
    real = k_pos + torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(module.dense(q_pos, real), formula(module, q_pos, real))


def test_it_begins_without_positions_as_in_the_authors_code():
    module, pos = built(), torch.arange(9)
    torch.testing.assert_close(module.dense(pos, pos), -torch.ones(4, 9, 9, dtype=torch.float64))
    assert {name for name, _ in module.named_parameters()} == {"theta_alpha", "theta_beta"}
    assert not module.state_dict().keys() - {"theta_alpha", "theta_beta"}


def test_with_exponent_1_and_alibis_slopes_it_is_alibi():
    pos = torch.arange(30)
    alibi = scheme("alibi").build(GEOMETRY).double().dense(pos, pos)
    got = built(beta_init=1.0, scale_init="slopes").dense(pos, pos)
    torch.testing.assert_close(got, alibi, atol=1e-5, rtol=1e-5)
    assert built(scale_init="slopes").theta_alpha.exp().tolist() == pytest.approx(alibi_slopes(4))


def test_gradients_are_finite_at_distance_zero_and_where_far_keys_are_preferred():
    module = built(beta_init=-0.5, train_mu=True)
    pos = torch.arange(40)
    bias = module.dense(pos, pos)
    assert (bias[:, -1, 0] > bias[:, -1, -2]).all()
    bias.sum().backward()
    for parameter in module.parameters():
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any()


def test_layers_have_their_own_unless_they_share():
    assert scheme("bam").per_layer
    assert not scheme("bam", {"shared": True}).per_layer


@pytest.mark.parametrize("scale", [0.0, -1.0, "slope"])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(FlagError, match=r"bam_scale_init=.* is not allowed: a number above 0"):
        scheme("bam", {"scale_init": scale}).build(GEOMETRY)
