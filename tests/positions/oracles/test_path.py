"""PaTH against the paper's formula in loops over the tokens."""

import pytest
import torch
from carried_schemes import GEOMETRY, all_ways_agree, attention, built, by_loops, inputs, same
from torch.nn.functional import logsigmoid, silu

from xcope.errors import FlagError
from xcope.positions import parse, scheme


def projected(module, x):
    """w (b n h d) before a convolution and β (b n h), as the paper makes them."""
    w = x
    for linear in module.to_w:
        w = w @ linear.weight.T
    beta = 2 * torch.sigmoid(x @ module.to_beta.weight.T + module.to_beta.bias)
    return w.view(*x.shape[:2], 3, 4), beta


def reflect(w, beta):
    def step(x, b, h, t):
        unit = w[b, t, h] / (w[b, t, h] @ w[b, t, h] + 1e-6).sqrt()
        return x - beta[b, t, h] * (x @ unit) * unit

    return step


@pytest.mark.parametrize("rank", [None, 2])
def test_the_papers_formula(rank):
    module = built("path", rank=rank)
    x, q, k, v = inputs()
    expected = by_loops(q, k, v, reflect(*projected(module, x)))
    same(attention(module, x, q, k, v), expected, module, x)


@pytest.mark.parametrize("scaled", [False, True])
def test_path_fox_forgets_as_forgetting_attention_does(scaled):
    module = built("path", forget=True, forget_scaled=scaled)
    x, q, k, v = inputs()
    linear = module.forgetting.to_forget_gates[0]
    log_f = logsigmoid(x @ linear.weight.T + linear.bias) * (0.5 if scaled else 1.0)
    expected = by_loops(q, k, v, reflect(*projected(module, x)), lambda b, h, t: log_f[b, t, h])
    same(attention(module, x, q, k, v), expected, module, x)


def test_a_short_convolution_mixes_the_last_tokens_of_a_channel():
    module = built("path", conv=3)
    x, q, k, v = inputs()
    w, beta = projected(module, x)
    mixed = torch.zeros_like(w)
    for t in range(x.shape[1]):
        for back in range(min(3, t + 1)):
            mixed[:, t] += w[:, t - back] * module.taps[..., 2 - back]
    same(attention(module, x, q, k, v), by_loops(q, k, v, reflect(silu(mixed), beta)), module, x)


@pytest.mark.parametrize(
    "options",
    [{}, {"forget": True}, {"conv": 3}, {"conv": 3, "forget": True, "forget_scaled": True}],
    ids=str,
)
def test_cache_padding_and_documents_give_what_the_row_gives(options):
    all_ways_agree({"name": "path", **options})


def test_the_beginning_is_as_the_page_says():
    module = scheme("path", {"forget": True}).build(GEOMETRY)
    assert [linear.weight.shape for linear in module.to_w] == [(32, 6), (12, 32)]
    assert (module.to_beta.bias == 0).all()
    assert (module.forgetting.to_forget_gates[0].bias == 5).all()


def test_beside_other_schemes():
    parse(["path", "rotary"])
    parse(["path", "alibi"])
    with pytest.raises(FlagError, match="what is forgotten is itself a bias"):
        parse([{"name": "path", "forget": True}, "alibi"])
    with pytest.raises(FlagError, match="PoPE"):
        parse(["path", "pope"])
    with pytest.raises(FlagError, match="path_rank=0"):
        scheme("path", {"rank": 0}).build(GEOMETRY)
