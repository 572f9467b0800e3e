"""Keyword flags: spellings of one scheme, that scheme alone, errors that name the flag."""

import copy

import pytest
import torch
import x_transformers as xt
from schemes import NAMES, position

import xcope
from xcope.errors import FlagError
from xcope.modules import decoder_flags, wrapper_flags

SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}


def wrapped(use_abs_pos_emb=None, max_seq_len=16, scaled_sinu_pos_emb=False, **flags):
    return xcope.TransformerWrapper(
        num_tokens=20,
        max_seq_len=max_seq_len,
        use_abs_pos_emb=use_abs_pos_emb,
        scaled_sinu_pos_emb=scaled_sinu_pos_emb,
        attn_layers=xcope.Decoder(**SIZE, **flags),
    )


@pytest.mark.parametrize(
    "flags",
    [
        {"attn_use_cope": True, "cope_max_pos": 8, "cope_soft_onehot": True},
        {"attn_use_cope": True, "attn_cope_max_pos": 8, "attn_cope_soft_onehot_pos": True},
        {"position": "cope", "cope_max_pos": 8, "cope_soft_onehot": True},
        {"position": {"name": "cope", "max_pos": 8, "soft_onehot": True}},
        {"position": ["cope"], "attn_use_cope": True, "cope_max_pos": 8, "cope_soft_onehot": True},
    ],
    ids=str,
)
def test_spellings_mean_the_same(flags):
    (scheme,) = wrapped(**flags).schemes
    assert scheme.label() == "cope(max_pos=8, soft_onehot=True)"


@pytest.mark.parametrize(
    "flags",
    [
        {"position": "cope"},
        {"attn_use_cope": True},
        {"alibi_pos_bias": True},
        {"rotary_pos_emb": True},
        {"position": "none"},
        {"attn_data_dependent_alibi": True},
        {"dynamic_pos_bias": True},
    ],
    ids=str,
)
def test_a_scheme_means_that_scheme_alone(flags):
    assert not any(name.startswith("pos_emb") for name in wrapped(**flags).state_dict())


@pytest.mark.parametrize(
    ("flags", "use_abs"),
    [
        ({}, None),
        ({"position": "absolute"}, None),
        ({"position": ["absolute", "cope"]}, None),
        ({"position": "cope"}, True),
        ({"rotary_pos_emb": True, "disable_abs_pos_emb": False}, None),
    ],
    ids=str,
)
def test_absolute_positions_are_there_when_asked_for(flags, use_abs):
    model = wrapped(use_abs, **flags)
    assert model.state_dict()["pos_emb.emb.weight"].shape == (16, 32)
    assert "absolute" in [scheme.name for scheme in model.schemes]


def test_no_flag_at_all_is_learned_absolute_as_in_x_transformers_unless_switched_off():
    assert "pos_emb.emb.weight" in wrapped().state_dict()
    assert "pos_emb.emb.weight" not in wrapped(False).state_dict()
    assert "pos_emb.emb.weight" not in wrapped(disable_abs_pos_emb=True).state_dict()


def test_weights_of_one_seed_are_the_same_under_every_scheme():
    positions = [position(name) for name in NAMES]
    positions += [{"name": "cope", "sep_keys": True, "talking_heads": True}, ["absolute", "cope"]]
    weights, after = {}, {}
    for chosen in positions:
        torch.manual_seed(3)
        weights[str(chosen)] = wrapped(position=chosen).state_dict()
        after[str(chosen)] = float(torch.rand(()))
    assert len(set(after.values())) == 1
    for name, state in weights.items():
        for key, value in weights[str(position("none"))].items():
            assert torch.equal(value, state[key]), (name, key)


@pytest.mark.parametrize(
    ("flags", "flag", "said"),
    [
        ({"position": "cop"}, "position", ["'cop'", "'rotary'", "did you mean 'cope'?"]),
        ({"attn_use_cop": True}, "attn_use_cop", ["did you mean 'attn_use_cope'?"]),
        ({"position": "rotary", "cope_max_pos": 3}, "cope_max_pos", ["'cope'", "not chosen"]),
        ({"position": {"name": "cope", "max_po": 3}}, "cope_max_po", ["did you mean 'max_pos'?"]),
        ({"position": {"max_pos": 3}}, "position", ["lacks 'name'"]),
        ({"position": 3}, "position", ["neither a scheme's name nor a mapping"]),
        ({"position": []}, "position", ["names no scheme"]),
        ({"position": ["absolute", "sinusoidal"]}, "position", ["two schemes at once", "input"]),
        ({"position": "cope", "rotary_pos_emb": True}, "rotary_pos_emb", ["two schemes at once"]),
        ({"rotary_pos_emb": True, "polar_pos_emb": True}, "position", ["rotation slot"]),
        ({"alibi_pos_bias": True, "rel_pos_bias": True}, "position", ["bias slot"]),
        (
            {"alibi_pos_bias": True, "attn_use_rel_proj_pos_bias": True},
            "attn_use_rel_proj_pos_bias",
            ["bias slot"],
        ),
        ({"rel_pos_bias": True, "position": "cope"}, "rel_pos_bias", ["two schemes at once"]),
        ({"attn_use_cope": 1}, "attn_use_cope", ["True or False"]),
        (
            {"attn_use_cope": True, "cope_max_pos": 8, "attn_cope_max_pos": 9},
            "attn_cope_max_pos",
            ["contradicts cope_max_pos=8"],
        ),
        (
            {"position": {"name": "cope", "max_pos": 8}, "cope_max_pos": 32},
            "cope_max_pos",
            ["contradicts cope_max_pos=8"],
        ),
        (
            {"attn_use_latent_q": True, "ff_glu": True},
            "attn_use_latent_q",
            ["refuses attn_use_latent_q=True: assert exists(dim_latent"],
        ),
        ({"attn_kv_heads": (4, 3)}, "attn_kv_heads", ["(4, 3) does not divide heads=4"]),
        ({"rel_pos_kwargs": {"slope": 1}, "alibi_pos_bias": True}, "alibi_slope", ["slopes"]),
        ({"layers_execute_order": (0, 9)}, "layers_execute_order", ["(0, 9)"]),
        ({"ff_mult": "4"}, "ff_mult", ["refuses ff_mult='4'"]),
        ({"position": "cope", "cope_max_pos": 0}, "cope_max_pos", ["at least 1"]),
        ({"position": "cope", "cope_max_pos": "8"}, "cope_max_pos", ["an int, or 'block'"]),
        ({"position": "cope", "cope_soft_onehot": "yes"}, "cope_soft_onehot", ["type bool"]),
        ({"position": "cope", "cope_soft_onehot_temp": 0}, "cope_soft_onehot_temp", ["above 0"]),
        ({"position": "cope", "cope_backend": "flash"}, "cope_backend", ["'reference'"]),
        ({"position": "rotary", "rotary_dim": 7}, "rotary_dim", ["even number", "dim_head=16"]),
        ({"position": "rotary", "rotary_dim": 18}, "rotary_dim", ["dim_head=16"]),
        ({"position": "rotary", "rotary_base": 0.5}, "rotary_base", ["above 1"]),
        ({"position": "alibi", "alibi_num_heads": 5}, "alibi_num_heads", ["heads=4"]),
        ({"position": "alibi", "alibi_slopes": (0.5,)}, "alibi_slopes", ["1 slopes", "4 heads"]),
        ({"depth": 0}, "depth", ["from 1 on"]),
        ({"dim": -4}, "dim", ["from 1 on"]),
        ({"heads": 2.5}, "heads", ["2.5"]),
        ({"heads": 1}, "attn_dim_head", ["attn_project_out=True", "attn_dim_head=32"]),
        ({"attn_kv_heads": 3}, "attn_kv_heads", ["does not divide heads=4"]),
        (
            {"attn_use_cope": (True, False, True)},
            "attn_use_cope",
            ["3 entries", "2 self-attention"],
        ),
        (
            {"use_rmsnorm": True, "use_scalenorm": True},
            "use_rmsnorm",
            ["use_rmsnorm=True and use_scalenorm=True", "either scalenorm, rmsnorm"],
        ),
        (
            {"position": "absolute", "disable_abs_pos_emb": True},
            "disable_abs_pos_emb",
            ["absolute"],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_errors_of_the_decoder(flags, flag, said):
    with pytest.raises(FlagError) as caught:
        xcope.Decoder(**(SIZE | flags))
    assert caught.value.flag == flag
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: wrapped(False, position="absolute"), "contradicts position='absolute'"),
        (lambda: wrapped(scaled_sinu_pos_emb=True, position="absolute"), "two schemes at once"),
        (lambda: wrapped(False, scaled_sinu_pos_emb=True), "contradicts scaled_sinu_pos_emb"),
        (lambda: wrapped(max_seq_len=-1), "max_seq_len=-1"),
        (lambda: wrapped(max_seq_len=0, position="absolute"), "at least one row"),
        (
            lambda: xcope.TransformerWrapper(
                num_tokens=0, max_seq_len=4, attn_layers=xcope.Decoder(**SIZE)
            ),
            "num_tokens=0",
        ),
        (
            lambda: xcope.TransformerWrapper(
                num_tokens=4, max_seq_len=4, attn_layers=xcope.Decoder(**SIZE), tie_embeding=True
            ),
            "did you mean 'tie_embedding'?",
        ),
        (
            lambda: xcope.TransformerWrapper(num_tokens=4, max_seq_len=4, attn_layers=None),
            "must be a Decoder",
        ),
        (
            lambda: xcope.TransformerWrapper(
                num_tokens=4, max_seq_len=4, attn_layers=xcope.Decoder(**SIZE), looped=True
            ),
            "pre_and_post_norm",
        ),
        (
            lambda: xcope.TransformerWrapper(
                num_tokens=4,
                max_seq_len=4,
                attn_layers=xcope.Decoder(
                    dim=9, depth=1, heads=2, attn_dim_head=8, position="sinusoidal"
                ),
            ),
            "dim=9 is odd",
        ),
        (lambda: xcope.Decoder(depth=1), "needs dim"),
        (
            lambda: xcope.Decoder(dim=8, depth=1, heads=1, attn_dim_head=6, position="rotary"),
            "dim_head=6",
        ),
        (lambda: xcope.CoPE(dim=8, heads=1, max_pos=0), "cope_max_pos=0"),
    ],
)
def test_errors_of_the_wrapper(make, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        make()


def test_flag_names_are_all_there():
    assert {
        "dim",
        "attn_qk_norm",
        "ff_glu",
        "cross_attn_dim_context",
        "position",
    } <= decoder_flags()
    assert {"cope_max_pos", "attn_cope_max_pos", "rotary_base", "alibi_pos_bias"} <= decoder_flags()
    assert "attn_causal" not in decoder_flags()
    assert {"num_tokens", "tie_embedding", "use_abs_pos_emb"} <= wrapper_flags()


def test_cope_in_some_layers_only():
    model = wrapped(attn_use_cope=(True, False), attn_flash=True)
    tables = [name for name in model.state_dict() if name.endswith("cope.pos_emb")]
    assert tables == ["attn_layers.layers.0.1.attend.cope.pos_emb"]
    assert model(torch.randint(20, (1, 30))).shape == (1, 30, 20)


def test_flash_with_cope_is_taken():
    plain, flash = wrapped(position="cope"), wrapped(position="cope", attn_flash=True)
    flash.load_state_dict(plain.state_dict())
    tokens = torch.randint(20, (2, 12))
    torch.testing.assert_close(flash(tokens), plain(tokens))


def test_soft_one_hot_works_and_learns():
    model = wrapped(position="cope", cope_soft_onehot=True)
    model(torch.randint(20, (2, 12))).square().mean().backward()
    table = model.attn_layers.layers[0][1].attend.cope.pos_emb
    assert table.grad.abs().sum() > 0


def test_zero_table_changes_nothing_so_cope_can_be_added_to_a_trained_model():
    none, cope = wrapped(position="none"), wrapped(position="cope")
    missing, unexpected = cope.load_state_dict(none.state_dict(), strict=False)
    assert all(name.endswith("cope.pos_emb") for name in missing)
    assert not unexpected
    tokens = torch.randint(20, (2, 12))
    torch.testing.assert_close(cope(tokens), none(tokens))


def test_checkpoint_with_absolute_positions_says_what_to_set():
    theirs = xt.TransformerWrapper(
        num_tokens=20, max_seq_len=16, attn_layers=xt.Decoder(**SIZE, attn_use_cope=True)
    )
    with pytest.raises(RuntimeError, match=r"use_abs_pos_emb=True, max_seq_len=16"):
        wrapped(position="cope").load_state_dict(theirs.state_dict())
    ours = wrapped(True, position="cope")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    tokens = torch.randint(20, (2, 12))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-4, rtol=1e-4)
    with pytest.raises(RuntimeError, match="use_abs_pos_emb=False"):
        ours.load_state_dict(wrapped(position="cope").state_dict())


def test_learned_absolute_refuses_what_its_table_cannot_take():
    model = wrapped(position="absolute")
    with pytest.raises(FlagError, match="max_seq_len=16"):
        model(torch.randint(20, (1, 17)))
    generator = xcope.AutoregressiveWrapper(model)
    with pytest.raises(FlagError, match="the prompt has 17 tokens"):
        generator.generate(torch.randint(20, (1, 17)), 1)
    with pytest.raises(FlagError, match="at most 7 new tokens"):
        generator.generate(torch.randint(20, (1, 10)), 8)
    assert generator.generate(torch.randint(20, (1, 10)), 7).shape == (1, 7)
    assert generator.generate(torch.randint(20, (1, 10)), 9, cache_kv=False).shape == (1, 9)
    assert generator.beam_search(torch.randint(20, (1, 10)), 7).shape == (1, 7)


@pytest.mark.parametrize("name", [n for n in NAMES if "absolute" not in n])
def test_other_schemes_take_inputs_longer_than_max_seq_len(name):
    model = wrapped(position=position(name))
    assert model.max_table_len is None
    assert model(torch.randint(20, (1, 40))).shape == (1, 40, 20)


def test_attention_maps_and_z_loss_can_be_asked_of_cope():
    model = wrapped(position="cope")
    tokens = torch.randint(20, (1, 12))
    _, maps = model(tokens, return_attn=True)
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(1, 4, 12))
    logits, intermediates = model(tokens, return_attn_z_loss=True)
    assert intermediates.attn_z_loss > 0
    torch.testing.assert_close(logits, model(tokens))


def test_dropout_on_attention_takes_the_path_that_has_it_and_says_so(caplog):
    model = wrapped(position="cope", attn_dropout=0.5)
    assert "attn_dropout" in caplog.text
    tokens = torch.randint(20, (1, 12))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_copies_and_autocast():
    model = wrapped(position=["absolute", "cope"]).eval()
    tokens = torch.randint(20, (1, 12))
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(tokens), model(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(tokens).float(), twin(tokens).float())
    with torch.no_grad():
        twin.pos_emb.emb.weight.add_(1.0)
    assert not torch.equal(twin(tokens), model(tokens))
