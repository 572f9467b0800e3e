"""Hybrid stacks: a scheme for each layer, a scheme for each group of heads."""

import pytest
import torch

import xcope
from xcope.errors import FlagError
from xcope.modules import attention, seam
from xcope.modules.places import Places

SIZE = {"dim": 32, "depth": 4, "heads": 4, "attn_dim_head": 16}


def wrapped(position, **flags):
    torch.manual_seed(0)
    layers = xcope.Decoder(**(SIZE | flags), position=position)
    model = xcope.TransformerWrapper(num_tokens=20, max_seq_len=32, attn_layers=layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("pos_emb"):
                parameter.normal_()
    return model.eval()


def parts(model):
    return [its.attend.parts for its in seam.self_attentions(model.attn_layers)]


def test_layers_are_repeated_over_the_depth():
    for position in ({"layers": ["rotary", "none"]}, ["rotary", "none"]):
        model = wrapped(position)
        rotated = [part.rotation is not None for (part,) in parts(model)]
        assert rotated == [True, False, True, False]
        assert model.plan.label() == "layers(rotary, none)"
        assert "attn_layers.rotary_pos_emb.inv_freq" in model.state_dict()


def test_layers_with_one_scheme_share_its_module():
    model = wrapped({"layers": ["alibi", "rotary", "alibi"]})
    first, _, third, again = (part for (part,) in parts(model))
    assert first.bias is third.bias is again.bias


def attention_of(position, layer=0, n=12):
    """What the heads of one layer give for random input, (n heads·dim_head)."""
    model = wrapped(position)
    attention = seam.self_attentions(model.attn_layers)[layer]
    attention.to_out = torch.nn.Identity()
    torch.manual_seed(1)
    return attention(torch.randn(1, n, 32), rotary_pos_emb=Places(torch.arange(n)))[0]


def test_a_layer_is_what_it_is_in_a_decoder_of_its_scheme_alone():
    hybrid = {"layers": ["rotary", "alibi", "none"]}
    for layer, name in enumerate(hybrid["layers"]):
        torch.testing.assert_close(attention_of(hybrid, layer), attention_of(name, layer))
    assert not torch.allclose(attention_of("rotary"), attention_of("none"))


def test_heads_have_schemes_of_their_own():
    model = wrapped({"heads": ["cope", "rotary"]})
    (first, second) = parts(model)[0]
    assert (first.heads, second.heads) == (2, 2)
    assert first.attend is not None
    assert second.rotation is not None
    assert model.plan.label() == "heads(cope, rotary)"


def test_equal_groups_of_heads_are_one():
    (cope, rotary) = parts(wrapped({"heads": ["cope", "rotary", "cope", "cope"]}))[0]
    assert (cope.heads, rotary.heads) == (3, 1)


def test_a_group_of_heads_is_what_it_is_in_a_decoder_of_its_scheme_alone():
    alibi, rotary = attention_of("alibi"), attention_of("rotary")
    both = attention_of({"heads": [{"name": "alibi", "slopes": [0.25, 0.0625]}, "rotary"]})
    torch.testing.assert_close(both[:, :32], alibi[:, :32])
    torch.testing.assert_close(both[:, 32:], rotary[:, 32:])


def test_the_same_for_all_is_no_split():
    for split in ("layers", "heads"):
        torch.testing.assert_close(attention_of({split: ["rotary"] * 2}), attention_of("rotary"))


HYBRIDS = [
    {"layers": ["rotary", "none"]},
    {"layers": ["cope", "alibi", "forgetting"]},
    {"heads": ["cope", "rotary"]},
    {"heads": [{"name": "cope", "sep_keys": True}, "alibi", "rotary", "none"]},
    {"heads": ["forgetting", ["t5", "rotary"]]},
    ["absolute", {"layers": [{"heads": ["cope", "rotary"]}, "none"]}],
    [{"heads": ["cope", "none"]}, "rotary"],
    {"layers": ["t5", "fire", "rotary", "xpos"]},
]


@pytest.mark.parametrize("position", HYBRIDS, ids=str)
@pytest.mark.parametrize("flags", [{}, {"attn_kv_heads": 2}, {"attn_num_mem_kv": 2}], ids=str)
def test_tiles_equal_the_bias_written_out_and_the_cache_changes_nothing(position, flags):
    model = wrapped(position, **flags)
    tokens = torch.randint(20, (2, 14))
    with seam.logits_kept(model):
        expected = model(tokens)
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)
    generator = xcope.AutoregressiveWrapper(model)
    texts = [generator.generate(tokens, 14, temperature=0.0, cache_kv=c) for c in (True, False)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("position", HYBRIDS, ids=str)
def test_every_parameter_learns(position):
    model = wrapped(position).train()
    model(torch.randint(20, (2, 14))).square().mean().backward()
    unseen = [n for n, p in model.named_parameters() if p.grad is None]
    assert not unseen


@pytest.mark.parametrize(
    ("position", "said"),
    [
        ({"layers": []}, "a list with an entry for each"),
        ({"layers": ["rotary"], "name": "cope"}, "nothing beside it"),
        ({"layer": ["rotary"]}, "did you mean 'layers'?"),
        ({"layers": ["absolute", "none"]}, r"[absolute, {layers: […]}]"),
        (["absolute", "none"], r"[absolute, {layers: […]}]"),
        ({"heads": [{"layers": ["rotary", "none"]}, "cope"]}, "put 'heads' into 'layers'"),
        ({"layers": [{"layers": ["rotary", "none"]}, "cope"]}, "'layers' within 'layers'"),
        ({"heads": ["rotary", "cope", "alibi"]}, "heads=4 cannot be divided into 3"),
        ({"layers": ["rotary", "none", "cope", "none", "none"]}, "5 layers, but there are 4"),
        ([{"layers": ["rotary", "none"]}, "xpos"], "both fill the rotation slot"),
        (
            {"heads": ["forgetting", {"name": "forgetting", "post_log_scale": 2.0}]},
            "let the heads of one group forget",
        ),
    ],
    ids=str,
)
def test_errors(position, said):
    with pytest.raises(FlagError) as caught:
        xcope.Decoder(**SIZE, position=position)
    assert said in str(caught.value)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_wide_queries_held_all_at_once_or_made_again_in_the_backward(kv_heads, monkeypatch):
    torch.manual_seed(0)
    layers = xcope.Decoder(dim=32, depth=1, heads=4, attn_kv_heads=kv_heads, position="pope")
    x = torch.randn(2, 20, 32)
    found = []
    for most in (attention.WIDE_AT_ONCE, 0):
        monkeypatch.setattr(attention, "WIDE_AT_ONCE", most)
        out = layers(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(layers.parameters()))])
    for at_once, again in zip(*found, strict=True):
        torch.testing.assert_close(at_once, again)
