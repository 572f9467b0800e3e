"""What x-transformers has too is the same here: weights, logits, gradients, generated text."""

import pytest
import torch
import x_transformers as xt

import xcope

# scheme → flags that make x-transformers build the same: of its Decoder, of its wrapper
COUNTERPARTS = {
    name: kind.counterpart()
    for name, kind in xcope.schemes().items()
    if kind.oracle == "x-transformers"
}

# where x-transformers fails, or is wrong
BROKEN = {
    ("pope", "attn_kv_heads"),  # its phases do not fit the keys
    ("pope", "attn_num_mem_kv"),  # its memories are narrower than the keys
}
NOT_CACHED = {"forgetting", "decay"}  # its cache holds no gates

FLAGS = {
    "plain": {},
    "kv_heads": {"attn_kv_heads": 2},
    "one_kv_head": {"attn_one_kv_head": True},
    "mem_kv": {"attn_num_mem_kv": 3},
    "qk_norm": {"attn_qk_norm": True},
    "glu": {"ff_glu": True},
    "rmsnorm": {"use_rmsnorm": True},
    "value_residual": {"add_value_residual": True},
    "softmax_variants": {"attn_head_learned_sink": True, "attn_softclamp_logits": True},
    "residual_attn": {"residual_attn": True},
    "window": {"attn_max_attend_past": 5},
    "sink": {"attn_head_learned_sink": True},
}

SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16, "verbose": False}
TOKENS = {"num_tokens": 40, "max_seq_len": 48}


def pair(name, **flags):
    """(theirs, ours) with the same weights; tables of zeros made visible first."""
    layers, wrapper = COUNTERPARTS[name]
    theirs = xt.TransformerWrapper(
        **TOKENS, **wrapper, attn_layers=xt.Decoder(**SIZE, **layers, **flags)
    ).eval()
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "pos_emb" in parameter_name or "sink" in parameter_name:
                parameter.normal_()
    ours = ours_of(name, **flags)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def ours_of(name, **flags):
    return xcope.TransformerWrapper(
        **TOKENS, attn_layers=xcope.Decoder(**SIZE, position=name, **flags)
    ).eval()


def skip_what_x_transformers_cannot_do(name, flags):
    for flag in flags:
        if (name, flag) in BROKEN:
            pytest.skip(f"x-transformers fails with {name} and {flag}")


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_logits_and_weights(name, flags):
    skip_what_x_transformers_cannot_do(name, flags)
    theirs, ours = pair(name, **flags)
    tokens = torch.randint(40, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-4, rtol=1e-4)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("flags", [{}, {"attn_kv_heads": 2}, {"attn_num_mem_kv": 2}], ids=str)
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_key_padding_mask(name, flags):
    skip_what_x_transformers_cannot_do(name, flags)
    theirs, ours = pair(name, **flags)
    tokens = torch.randint(40, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, 14:] = False
    mask[1, 5:9] = False
    if name == "xpos" and "attn_num_mem_kv" in flags:
        # x-transformers counts the padding in the length that these logits depend on; a row that
        # is padded on the right is to have what it has alone
        short = theirs(tokens[:1, :14])
        torch.testing.assert_close(ours(tokens, mask=mask)[:1, :14], short, atol=1e-4, rtol=1e-4)
        tokens, mask = tokens[1:], mask[1:]
    expected = theirs(tokens, mask=mask)[mask]
    torch.testing.assert_close(ours(tokens, mask=mask)[mask], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_gradients(name):
    theirs, ours = pair(name)
    tokens = torch.randint(40, (2, 24))
    for model in (theirs, ours):
        model(tokens).square().mean().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[parameter_name], atol=1e-4, rtol=1e-3, msg=parameter_name
        )


GENERATION = ["plain", "kv_heads", "mem_kv", "qk_norm", "glu", "rmsnorm", "value_residual"]


@pytest.mark.parametrize("flags", [FLAGS[name] for name in GENERATION], ids=GENERATION)
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_greedy_generation_with_and_without_cache(name, flags):
    skip_what_x_transformers_cannot_do(name, flags)
    theirs, ours = pair(name, **flags)
    prompt = torch.randint(40, (2, 9))
    texts = [
        wrapper(model).generate(prompt, 18, temperature=0.0, cache_kv=cache)
        for wrapper, model in (
            (xt.AutoregressiveWrapper, theirs),
            (xcope.AutoregressiveWrapper, ours),
        )
        for cache in (True, False)
        if not (model is theirs and cache and name in NOT_CACHED)
    ]
    assert len(set(texts[0].flatten().tolist())) > 2, "a constant text would compare nothing"
    for text in texts[1:]:
        assert torch.equal(text, texts[0])


@pytest.mark.parametrize("name", ["cope", "cope_rotary"])
def test_talking_heads(name):
    flags = {"attn_cope_talking_heads": True}
    theirs, _ = pair(name, **flags)
    layers, _ = COUNTERPARTS[name]
    ours = xcope.TransformerWrapper(
        **TOKENS,
        use_abs_pos_emb=False,
        attn_layers=xcope.Decoder(**SIZE, **layers, **flags, attn_kv_heads=4),
    ).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    tokens = torch.randint(40, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-4, rtol=1e-4)


def test_talking_heads_with_grouped_keys_mix_the_heads_x_transformers_mixes():
    theirs, ours = pair("cope", attn_kv_heads=2, attn_cope_talking_heads=True)
    tokens = torch.randint(40, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("theirs_kwargs", "ours_kwargs"),
    [
        (
            {"alibi_pos_bias": True, "alibi_num_heads": 3},
            {"position": "alibi", "alibi_num_heads": 3},
        ),
        (
            {"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.5, 0.2, 0.1, 0.0]}},
            {"position": "alibi", "rel_pos_kwargs": {"slopes": [0.5, 0.2, 0.1, 0.0]}},
        ),
        (
            {"rotary_pos_emb": True, "rotary_emb_dim": 16, "rotary_interpolation_factor": 2.0},
            {"position": {"name": "rotary", "dim": 16, "interpolation_factor": 2.0}},
        ),
        (
            {"rotary_pos_emb": True, "rotary_base_rescale_factor": 4.0},
            {"position": "rotary", "rotary_base_rescale_factor": 4.0},
        ),
        ({"rotary_xpos": True}, {"rotary_xpos": True}),
        ({"rel_pos_bias": True}, {"rel_pos_bias": True}),
        ({"dynamic_pos_bias": True}, {"dynamic_pos_bias": True}),
        ({"polar_pos_emb": True}, {"polar_pos_emb": True}),
        ({"attn_data_dependent_alibi": True}, {"attn_data_dependent_alibi": True}),
    ],
    ids="-".join,
)
def test_options_and_schemes_that_x_transformers_builds_itself(theirs_kwargs, ours_kwargs):
    theirs = xt.TransformerWrapper(
        **TOKENS, use_abs_pos_emb=False, attn_layers=xt.Decoder(**SIZE, **theirs_kwargs)
    ).eval()
    ours = xcope.TransformerWrapper(
        **TOKENS, attn_layers=xcope.Decoder(**SIZE, **ours_kwargs)
    ).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    tokens = torch.randint(40, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-4, rtol=1e-4)


def test_custom_positions_with_alibi_and_rotary():
    pos = torch.tensor([[0, 1, 2, 5, 9], [0, 3, 4, 4, 6]])
    tokens = torch.randint(40, (2, 5))
    for name in ("alibi", "rotary"):
        theirs, ours = pair(name)
        torch.testing.assert_close(
            ours(tokens, pos=pos), theirs(tokens, pos=pos), atol=1e-4, rtol=1e-4
        )
