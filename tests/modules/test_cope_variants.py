"""CoPE's variants in a decoder: each is what it says, on the fused and on the (i j) path."""

from contextlib import contextmanager

import pytest
import torch

import xcope
from xcope.errors import FlagError
from xcope.modules import seam
from xcope.modules.places import Places

VARIANTS = {
    "per_head": {"cope_per_head": True},
    "sep_keys": {"cope_sep_keys": True},
    "val_gates": {"cope_val_gates": True},
    "talking_heads": {"cope_talking_heads": True},
    "all": {"cope_per_head": True, "cope_sep_keys": True, "cope_talking_heads": True},
}


def model(position="cope", **flags):
    decoder = xcope.Decoder(
        dim=32, depth=2, heads=4, attn_dim_head=8, position=position, cope_max_pos=6, **flags
    )
    made = xcope.TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=decoder).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("cope.pos_emb"):
                parameter.normal_()
    return made


@pytest.mark.parametrize(
    "flags",
    [{}, {"attn_kv_heads": 2}, {"attn_one_kv_head": True}, {"attn_num_mem_kv": 2}],
    ids=str,
)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_both_paths_agree(variant, flags):
    made = model(**variant, **flags)
    tokens = torch.randint(20, (2, 24))
    mask = torch.rand(2, 24) > 0.2
    for given in ({}, {"mask": mask}):
        fused = made(tokens, **given)
        with seam.logits_kept(made.attn_layers):
            materialised = made(tokens, **given)
        keep = given.get("mask", torch.ones_like(tokens, dtype=torch.bool))
        torch.testing.assert_close(fused[keep], materialised[keep], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("flags", [{}, {"attn_kv_heads": 2}, {"rotary_pos_emb": True}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_same_text_with_and_without_cache_and_alone_or_left_padded(variant, flags):
    made = xcope.TransformerWrapper(
        num_tokens=20,
        max_seq_len=16,
        attn_layers=xcope.Decoder(
            dim=32, depth=2, heads=4, attn_dim_head=8, attn_use_cope=True, **variant, **flags
        ),
    ).eval()
    generator = xcope.AutoregressiveWrapper(made)
    prompts = [torch.randint(20, (length,)) for length in (3, 8)]
    together = generator.generate(prompts, 20, temperature=0.0)
    for row, prompt in zip(together, prompts, strict=True):
        for cache in (True, False):
            alone = generator.generate(prompt[None], 20, temperature=0.0, cache_kv=cache)
            assert torch.equal(row, alone[0])


@pytest.mark.parametrize("flags", [{}, {"attn_kv_heads": 2, "attn_num_mem_kv": 1}], ids=str)
def test_gate_keys_equal_to_the_keys_are_plain_cope(flags):
    plain, separate = model(**flags), model(**flags, cope_sep_keys=True)
    missing, unexpected = separate.load_state_dict(
        {k: v for k, v in plain.state_dict().items() if not k.endswith("mem_k")}, strict=False
    )
    assert {name.rsplit(".", 1)[-1] for name in missing} <= {"gate_weight", "mem_k"}
    assert not unexpected
    attentions = [seam.self_attentions(made.attn_layers) for made in (plain, separate)]
    with torch.no_grad():
        for ours, theirs in zip(*attentions, strict=True):
            theirs.to_k.gate_weight.copy_(ours.to_k.weight)
            if flags:
                theirs.mem_k.copy_(ours.mem_k.repeat(2, 1, 1))
    tokens = torch.randint(20, (2, 24))
    torch.testing.assert_close(separate(tokens), plain(tokens))
    with torch.no_grad():
        attentions[1][0].to_k.gate_weight.neg_()
    assert not torch.allclose(separate(tokens), plain(tokens))


def test_values_equal_to_the_keys_are_plain_cope():
    plain, gated = model(), model(cope_val_gates=True)
    for made in (plain, gated):
        with torch.no_grad():
            for attention in seam.self_attentions(made.attn_layers):
                attention.to_v.weight.copy_(attention.to_k.weight)
    gated.load_state_dict(plain.state_dict())
    tokens = torch.randint(20, (2, 24))
    torch.testing.assert_close(gated(tokens), plain(tokens))
    with torch.no_grad():
        for made in (plain, gated):
            seam.self_attentions(made.attn_layers)[0].to_v.weight.neg_()
    assert not torch.allclose(gated(tokens), plain(tokens))


def test_equal_tables_for_all_heads_are_one_table():
    plain, tables = model(), model(cope_per_head=True)
    state = {
        name: value.expand(4, -1, -1) if name.endswith("cope.pos_emb") else value
        for name, value in plain.state_dict().items()
    }
    tables.load_state_dict(state)
    tokens = torch.randint(20, (2, 24))
    torch.testing.assert_close(tables(tokens), plain(tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "flags",
    [
        {"attn_qk_rmsnorm": True},
        {"attn_value_rmsnorm": True},
        {"attn_num_mem_kv": 2},
        {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
        {"cope_sep_keys": True},
        {"cope_val_gates": True, "attn_kv_heads": 2},
    ],
    ids=str,
)
def test_autocast_with_parts_that_leave_float32_behind(flags, dtype):
    made = model(**flags)
    tokens = torch.randint(20, (2, 24))
    with torch.autocast("cpu", dtype):
        logits = made(tokens).float()
    torch.testing.assert_close(logits, made(tokens), atol=0.3, rtol=0.1)
    logits.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_every_parameter_of_every_variant_learns():
    made = model(cope_per_head=True, cope_sep_keys=True, cope_talking_heads=True)
    made(torch.randint(20, (2, 24))).square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"cope_sep_keys": True, "cope_val_gates": True}, "drop one of the two"),
        ({"cope_sep_keys": True, "attn_qk_rmsnorm": True}, "attn_qk_rmsnorm"),
        ({"cope_val_gates": True, "attn_value_dim_head": 16}, "attn_value_dim_head"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_does_not_go_together_is_refused(flags, said):
    with pytest.raises(FlagError, match=said):
        xcope.Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, attn_use_cope=True, **flags)


def test_gates_from_keys_of_their_own_are_turned_in_the_same_heads_as_the_keys():
    flags = {"position": ["cope", "rotary"], "rotate_num_heads": 1}
    one, own = model(**flags), model(cope_sep_keys=True, **flags)
    state = one.state_dict()
    for name in [name for name in state if name.endswith("to_k.weight")]:
        state[name.replace("to_k.weight", "to_k.gate_weight")] = state[name]
    own.load_state_dict(state)
    tokens = torch.randint(20, (2, 24))
    torch.testing.assert_close(own(tokens), one(tokens))


def test_variants_stay_right_where_the_logits_are_materialised():
    flags = {"cope_sep_keys": True, "alibi_pos_bias": True, "attn_add_zero_kv": True}
    made = xcope.TransformerWrapper(
        num_tokens=20,
        max_seq_len=16,
        attn_layers=xcope.Decoder(
            dim=32, depth=1, heads=4, attn_dim_head=8, attn_use_cope=True, **flags
        ),
    ).eval()
    (attention,) = seam.self_attentions(made.attn_layers)
    with torch.no_grad():
        attention.attend.cope.pos_emb.normal_()
    tokens = torch.randint(20, (1, 12))
    before = made(tokens)
    with torch.no_grad():
        attention.to_k.gate_weight.neg_()
    assert not torch.allclose(made(tokens), before)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_with_rotary_only_distances_matter(variant):
    made = model(["cope", "rotary"], **variant)
    layers, x = made.attn_layers, torch.randn(1, 12, 32)
    (attention, _) = seam.self_attentions(layers)
    with torch.no_grad():
        attention.attend.cope.pos_emb.zero_()  # else turned queries meet it
        here, there = (attention(x, rotary_pos_emb=Places(torch.arange(12) + s)) for s in (0, 7))
    gates = []
    for shift in (0, 7):
        with seam.logits_kept(layers), recorded_gates(attention.attend.cope) as seen:
            attention(x, rotary_pos_emb=Places(torch.arange(12) + shift))
        gates.append(seen[0])
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*gates, atol=1e-5, rtol=1e-4)


@contextmanager
def recorded_gates(cope):
    """The gates that CoPE makes within, (b h i j), 0 where a key is not seen."""
    seen = []

    def record(_module, inputs, _output):
        logits, visible = cope.gate_logits(*inputs)
        seen.append(logits.sigmoid().masked_fill(~visible, 0.0))

    hook = cope.register_forward_hook(record)
    yield seen
    hook.remove()


@pytest.mark.parametrize("flags", [{}, {"cope_per_head": True}], ids=str)
def test_the_table_begins_at_zero_or_as_noise(flags):
    def tables(**more):
        decoder = xcope.Decoder(dim=128, depth=2, heads=4, cope_max_pos=64, attn_use_cope=True,
                                **flags, **more)  # fmt: skip
        return [table for name, table in decoder.named_parameters() if name.endswith("pos_emb")]

    assert all((table == 0).all() for table in tables())
    noise = tables(cope_init_std=0.3)
    assert [table.std().item() for table in noise] == pytest.approx([0.3, 0.3], rel=0.1)
    assert not (noise[0] == noise[1]).any(), "layers begin differently"
    with pytest.raises(FlagError, match=r"cope_init_std=-1.0.*0 or more"):
        tables(cope_init_std=-1.0)
