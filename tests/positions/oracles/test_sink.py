"""Sinks against gpt-oss' attention in transformers, and softmax plus one against its formula."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

import xcope
from xcope.errors import FlagError
from xcope.ops.biased import biased_attention

B, H, HK, N, D = 2, 4, 2, 37, 8


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, h, N, D, dtype=dtype) for h in (H, HK, HK))
    sinks = torch.linspace(-3, 4, H, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, sinks)]


def theirs(q, k, v, sinks):
    mask = torch.full((N, N), torch.finfo(q.dtype).min, dtype=q.dtype).triu(1)
    module = SimpleNamespace(sinks=sinks, num_key_value_groups=H // HK, training=False)
    out, _ = eager_attention_forward(module, q, k, v, mask, D**-0.5)
    return out.transpose(1, 2)


def gradients(out, given):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad(out, given, weight)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_with_sinks_and_its_gradients_are_those_of_gpt_oss(backend, dtype):
    given = tensors(dtype)
    q, k, v, sinks = given
    ours, truth = biased_attention(q, k, v, None, sink=sinks, backend=backend), theirs(*given)
    torch.testing.assert_close(ours, truth)
    for mine, its in zip(gradients(ours, given), gradients(truth, given), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("edges", [None, [0, 1, 2]])
def test_queries_and_keys_learn_through_the_sum_where_a_query_sees_one_key(backend, edges):
    """2 σ(q k − 0): its derivative by q and by k is 2 σ(1) σ(−1), however rounded the value's."""
    n = 1 if edges is None else 2
    q, k = (torch.ones(1, 1, n, 1, requires_grad=True) for _ in range(2))
    v, sink = (
        torch.full(shape, x, requires_grad=True) for shape, x in (((1, 1, n, 1), 2.0), ((1,), 0.0))
    )
    cu_seqlens = None if edges is None else torch.tensor(edges)
    given = {"scale": 1.0, "sink": sink, "cu_seqlens": cu_seqlens, "backend": backend}
    found = torch.autograd.grad(biased_attention(q, k, v, None, **given).sum(), (q, k, v, sink))
    for grad, truth in zip(
        found, (0.39322387, 0.39322387, 0.73105858, -0.39322387 * n), strict=True
    ):
        torch.testing.assert_close(grad, torch.full_like(grad, truth))


def test_a_few_queries_beside_a_cache_see_the_sink_too():
    with torch.no_grad():
        q, k, v, sinks = tensors()
        last = biased_attention(q[:, :, -3:], k, v, None, sink=sinks)
        torch.testing.assert_close(last, theirs(q, k, v, sinks)[:, :, -3:])


def test_flex_attention_gives_what_the_sum_of_its_exponentials_leaves():
    q, k, v, sinks = (t.detach() for t in tensors())
    ours = biased_attention(q, k, v, None, sink=sinks, backend="flex")
    torch.testing.assert_close(ours, theirs(q, k, v, sinks))


def test_softmax_plus_one_leaves_a_share_of_one_over_one_plus_n():
    """Logits of 0, values of 1: n keys have n / (n + 1) of the attention."""
    zeros, ones = torch.zeros(1, 1, N, D), torch.ones(1, 1, N, D)
    out = biased_attention(zeros, zeros, ones, None, sink=torch.zeros(1))
    n = torch.arange(1, N + 1)
    torch.testing.assert_close(out[0, 0, :, 0], n / (n + 1))


def test_large_logits_neither_overflow_nor_lose_the_sink():
    q, k, v, _ = tensors()
    for sink in (-200.0, 200.0):
        out = biased_attention(100 * q, 10 * k, v, None, sink=torch.full((H,), sink))
        truth = theirs(100 * q, 10 * k, v, torch.full((H,), sink))
        torch.testing.assert_close(out, truth, atol=1e-4, rtol=1e-4)


def decoder(**flags):
    torch.manual_seed(0)
    return xcope.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **flags)


def test_parameters_have_x_transformers_names_in_groups_of_heads_too():
    all_heads = decoder(position=["rotary", "sink"])
    assert all_heads.state_dict()["layers.0.1.attend.head_attn_sink"].shape == (4,)
    some = decoder(position={"heads": [["rotary", {"name": "sink", "init": 1.5}], "none"]})
    assert some.state_dict()["layers.0.1.attend.head_attn_sink"].tolist() == [1.5, 1.5]
    none = decoder(position={"name": "sink", "learned": False})
    assert not any("sink" in name for name, _ in none.named_parameters())


def test_a_group_with_sinks_beside_one_without_is_each_alone():
    x = torch.randn(1, 9, 32)
    both = decoder(position={"heads": ["sink", "none"]})
    outs = []
    for part in ("sink", "none"):
        alone = decoder(position=part)
        weights = {n: t for n, t in both.state_dict().items() if "sink" not in n}
        alone.load_state_dict(weights, strict=False)
        outs.append(attention(alone, x))
    mixed = attention(both, x)
    torch.testing.assert_close(mixed[:, :2], outs[0][:, :2])
    torch.testing.assert_close(mixed[:, 2:], outs[1][:, 2:])


def attention(layers, x):
    """What the first layer's attention operation gives, (b h n d)."""
    found = []
    attend = layers.layers[0][1].attend
    handle = attend.register_forward_hook(lambda *given: found.append(given[2][0]))
    layers(x)
    handle.remove()
    return found[0]


def test_sinks_are_refused_where_shares_do_not_depend_on_each_other():
    with pytest.raises(FlagError, match=r"attn_sigmoid=True.*'sink'"):
        decoder(position="sink", attn_sigmoid=True)
