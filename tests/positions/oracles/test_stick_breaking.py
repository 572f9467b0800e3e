"""Stick-breaking attention against the paper's products in loops, not in logarithms."""

import math

import pytest
import torch

import xcope
from xcope.errors import FlagError
from xcope.modules import seam
from xcope.positions import AttendInputs, Geometry, scheme

N = 9


def built(**options):
    return scheme("stick_breaking", options).build(Geometry(dim=6, heads=3, dim_head=8))


@pytest.mark.parametrize("attend_current", [False, True])
@pytest.mark.parametrize("remainder", [False, True])
def test_the_papers_formula(attend_current, remainder):
    module = built(attend_current=attend_current, remainder=remainder)
    q, k, v = (torch.randn(2, 3, N, 8).double() for _ in range(3))
    inputs = AttendInputs(scale=8**-0.5)
    out = module.attend(q, k, v, inputs)
    logits = 8**-0.5 * q @ k.mT
    seen = torch.ones(N, N).bool().tril().expand(2, 3, N, N)
    logs = logits + module(q, logits, seen, inputs)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 3, N))).tolist():
        beta = [1 / (1 + math.exp(-float(logits[b, h, i, j]))) for j in range(i + 1)]
        end = i + 1 if attend_current else i
        shares = [beta[j] * math.prod(1 - beta[t] for t in range(j + 1, end)) for j in range(end)]
        shares += [0.0] * (i + 1 - end)
        if remainder:
            shares[i] += 1 - sum(shares)
        expected = sum(share * v[b, h, j] for j, share in enumerate(shares))
        torch.testing.assert_close(out[b, h, i], expected + torch.zeros(8).double())
        assert logs[b, h, i].exp().masked_fill(~seen[b, h, i], 0.0)[: i + 1].tolist() == (
            pytest.approx(shares)
        )


SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16, "verbose": False}


def model_of(where, **flags):
    torch.manual_seed(0)
    decoder = xcope.Decoder(**SIZE, position=where, **flags)
    return xcope.TransformerWrapper(num_tokens=20, max_seq_len=24, attn_layers=decoder).eval()


def test_weights_that_are_held_are_the_shares_and_need_not_sum_to_1():
    model = model_of({"name": "stick_breaking", "remainder": False})
    tokens = torch.arange(12)[None]
    with seam.logits_kept(model):
        logits, inter = model(tokens, return_intermediates=True)
    torch.testing.assert_close(logits, model(tokens), atol=1e-5, rtol=1e-5)
    sums = inter.attn_intermediates[0].post_softmax_attn.sum(-1)
    assert not sums[..., 0].any()
    assert (sums[..., 1:] < 1).all()
    assert (sums[..., 1:] > 0).all()


def test_heads_beside_others_that_have_a_softmax():
    model = model_of({"heads": ["stick_breaking", "cope"]})
    tokens = torch.arange(12)[None]
    with seam.logits_kept(model):
        kept = model(tokens)
    torch.testing.assert_close(kept, model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flag", ["attn_head_learned_sink", "attn_selective", "attn_sigmoid"])
def test_not_beside_what_changes_a_softmax(flag):
    with pytest.raises(FlagError, match=r"'stick_breaking'.* weights are no softmax"):
        model_of("stick_breaking", **{flag: True})


def test_what_is_not_allowed_is_named():
    with pytest.raises(FlagError) as told:
        built(backend="fast")
    assert told.value.flag == "stick_breaking_backend"
