"""Length-scaled logits against transformers' Llama 4 and Ministral 3, and against the formulas."""

import math

import pytest
import torch
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

import xcope
from xcope.errors import FlagError
from xcope.positions import Geometry, scheme

GEOMETRY = Geometry(dim=32, heads=4, dim_head=8)
N = 30


def factors(pos, n=None, **options):
    module = scheme("length_scale", options).build(GEOMETRY)
    with torch.no_grad():
        return module(pos, pos + 1 if n is None else n)


def test_the_factor_is_that_of_ministral_3():
    pos = torch.arange(100)
    ours = factors(pos, kind="ministral3", every=16, rate=0.3)
    theirs = get_llama_4_attn_scale(pos[None], 0.3, 16)[0, 0, :, 0]
    torch.testing.assert_close(ours[0], theirs)


def test_attention_is_that_of_llama_4_in_a_layer_without_rotary_positions():
    torch.manual_seed(0)
    config = Llama4TextConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        num_hidden_layers=1,
        no_rope_layers=[0],
        attn_temperature_tuning=True,
        floor_scale=4,
        attn_scale=0.7,
        attention_bias=False,
        attn_implementation="eager",
    )
    theirs = Llama4TextAttention(config, 0).eval()
    position = {"name": "length_scale", "kind": "llama4", "every": 4, "rate": 0.7}
    layers = xcope.Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, position=position)
    ours = layers.layers[0][1]
    for mine, its in (
        (ours.to_q, theirs.q_proj),
        (ours.to_k, theirs.k_proj),
        (ours.to_v, theirs.v_proj),
        (ours.to_out, theirs.o_proj),
    ):
        mine.load_state_dict(its.state_dict())
    x = torch.randn(2, N, 32)
    mask = torch.full((N, N), torch.finfo(x.dtype).min).triu(1)[None, None]
    truth, _ = theirs(layers.layers[0][0][0](x), None, mask)
    found = []
    ours.register_forward_hook(lambda *given: found.append(given[2]))
    layers(x)
    out = found[0][0] if isinstance(found[0], tuple) else found[0]
    torch.testing.assert_close(out, truth, atol=1e-5, rtol=1e-4)


def test_ssmax_and_log_n_follow_their_formulas():
    pos = torch.arange(100)
    ssmax = factors(pos, init=0.43)
    log_n = factors(pos, kind="log_n", trained_len=32)
    for i in range(100):
        assert ssmax[:, i].tolist() == pytest.approx([0.43 * math.log(i + 1)] * 4, abs=1e-5)
        assert float(log_n[0, i]) == pytest.approx(max(1, math.log(i + 1) / math.log(32)))


def test_the_mean_factor_over_1024_places_is_one_at_the_start():
    assert float(factors(torch.arange(1024)).mean()) == pytest.approx(1, abs=0.005)


def test_scalable_softmax_is_a_softmax_to_the_base_n():
    """n^(s z_i) / Σ n^(s z_j), for each query of a layer."""
    torch.manual_seed(1)
    layers = xcope.Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, position="length_scale")
    attend = layers.layers[0][1].attend
    with torch.no_grad():
        attend.length_scale.s.copy_(torch.tensor([0.1, 0.3, 0.6, 1.0])[:, None])
    given = []
    attend.register_forward_hook(lambda *its: given.append((its[1], its[2][0])))
    layers(torch.randn(1, 12, 32))
    ((q, k, v), out) = given[0]
    for h, s in enumerate((0.1, 0.3, 0.6, 1.0)):
        for i in range(12):
            z = k[0, h, : i + 1] @ q[0, h, i] * 8**-0.5
            weights = (i + 1.0) ** (s * z)
            truth = (weights / weights.sum()) @ v[0, h, : i + 1]
            torch.testing.assert_close(out[0, h, i], truth, atol=1e-5, rtol=1e-4)


def test_beside_a_window_n_is_what_the_window_leaves():
    torch.manual_seed(0)
    both = ["length_scale", {"name": "window", "size": 3, "sinks": 1}]
    layers = xcope.Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, position=both)
    asked = []
    scale = layers.layers[0][1].attend.length_scale
    scale.register_forward_hook(lambda _, given, out: asked.append(given[1]))
    layers(torch.randn(1, 7, 32))
    assert asked[0].tolist() == [1, 2, 3, 4, 4, 4, 4]


def test_gradients_reach_s_of_each_head():
    layers = xcope.Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, position="length_scale")
    layers(torch.randn(2, 12, 32)).square().sum().backward()
    grad = layers.layers[0][1].attend.length_scale.s.grad
    assert (grad.abs() > 0).all()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"kind": "log"}, "length_scale_kind"),
        ({"kind": "log_n"}, "length_scale_trained_len"),
        ({"trained_len": 1}, "length_scale_trained_len"),
        ({"every": 0}, "length_scale_every"),
        ({"rate": -0.1}, "length_scale_rate"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, flag):
    with pytest.raises(FlagError) as caught:
        scheme("length_scale", options).build(GEOMETRY)
    assert caught.value.flag == flag
