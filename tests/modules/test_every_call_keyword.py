"""Every argument that a call of x-transformers takes acts as there, or is refused with words."""

import inspect

import pytest
import torch
import x_transformers as xt
from keyword_values import DIM, DIM_HEAD, HEADS, LENGTH, TOKENS
from x_transformers import x_transformers as xt_parts

import xcope
from xcope.errors import FlagError
from xcope.modules import seam

N, CONTEXT, SHOWN = 7, 5, 3
SIZE = {"dim": DIM, "depth": 2, "heads": HEADS, "attn_dim_head": DIM_HEAD, "verbose": False}
SCHEMES = {
    "rotary": {"rotary_pos_emb": True},
    "t5": {"rel_pos_bias": True},
    "cope": {"attn_use_cope": True},
    "forgetting": {"attn_data_dependent_alibi": True},
}


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids(n=N, b=2):
    return torch.randint(TOKENS, (b, n), generator=torch.Generator().manual_seed(n))


def keep(*shape):
    kept = randn(*shape) > -0.5
    kept[..., 0] = True
    return kept


def additional_keys():
    return [(randn(2, HEADS, 3, DIM_HEAD), randn(2, HEADS, 3, DIM_HEAD)) for _ in range(2)]


ADDED = {"self_attn_additional_kv": additional_keys()}
CROSS = {"cross_attend": True, "cross_attn_use_cope": False}
CROSS |= {"cross_attn_data_dependent_alibi": False}
GIVES_CONTEXT = {"context": randn(2, CONTEXT, DIM)}
PREFIX = torch.ones(N, N).tril().bool()
PREFIX[:, :SHOWN] = True

# argument → what it may be, further arguments, flags of the decoder, of the wrapper
LAYERS = {
    "context": [
        (randn(2, CONTEXT, DIM), {}, CROSS),
        (randn(2, CONTEXT, DIM), {}),
        (None, {}, CROSS),
    ],
    "mask": [(torch.arange(N) < torch.tensor([[N], [4]]), {})],
    "context_mask": [(keep(2, CONTEXT), GIVES_CONTEXT, CROSS)],
    "attn_mask": [
        (keep(N, N), {}),
        (keep(2, HEADS, N, N), {}),
        (torch.ones(N, N).bool(), {}),
        (torch.ones(2, 1, N, N).bool(), {}),
        (PREFIX, {}),
        (PREFIX, {"causal": False}),
        (torch.ones(1, N).bool(), {}),
    ],
    "self_attn_kv_mask": [(keep(2, N), {})],
    "mems": [([randn(2, 4, DIM), randn(2, 4, DIM)], {})],
    "mem_masks": [([keep(2, 4), keep(2, 4)], {"mems": [randn(2, 4, DIM), randn(2, 4, DIM)]})],
    "seq_start_pos": [(torch.tensor([0, 0]), {})],  # what stands before a row is not compared
    "seq_pos_offset": [(3, {})],
    "cache": [(None, {})],
    "input_not_include_cache": [(True, {})],
    "cache_age": [(1, {})],
    "return_hiddens": [(True, {})],
    "return_gumbel_log_probs": [(True, {})],
    "rotary_pos_emb": [((randn(1, N, 4), 1.0), {})],
    "polar_pos_emb": [((randn(1, N, DIM_HEAD), randn(HEADS, 1, DIM_HEAD)), {})],
    "pos": [(torch.arange(N) * 2, {})],
    "context_pos": [(torch.arange(CONTEXT) * 2, GIVES_CONTEXT, CROSS)],
    "attn_bias": [(randn(HEADS, N, N), {})],
    "deep_embeds_and_ids": [((randn(TOKENS, 2, DIM), ids()), {})],
    "self_attn_additional_kv": [(additional_keys(), {})],
    "additional_kv_mask": [(keep(2, 3), ADDED)],
    "detach_additional_kv": [(True, ADDED)],
    "route_additional_kv_to_top": [(False, ADDED)],
    "condition": [
        (randn(2, DIM), {}, {"use_adaptive_layernorm": True}),
        (randn(2, DIM), {}),
        (None, {}, {"use_adaptive_layernorm": True}),
    ],
    "in_attn_cond": [(randn(2, DIM), {})],
    "layers_execute_order": [((0, 1, 2, 3, 2, 3), {})],
    "repeat_blocks": [((0, 2), {})],
    "self_attn_kv_residuals": [(randn(2, N, DIM), {})],
    "cross_attn_kv_residuals": [(randn(2, CONTEXT, DIM), GIVES_CONTEXT, CROSS)],
    "flash_pack_seq_kwargs": [(None, {})],
    "flash_pack_seq_context_kwargs": [(None, {})],
    "causal": [(False, {}), (True, {}), (None, {})],
    "transform_block_inputs": [({1: torch.tanh, 2: torch.tanh}, {})],
}
LOOPED = {"looped": True, "max_looped_steps": 2}
NORMED = {"pre_and_post_norm": True}
WRAPPER = {
    "return_embeddings": [(True, {})],
    "return_logits_and_embeddings": [(True, {})],
    "return_intermediates": [(True, {})],
    "return_embeddings_and_intermediates": [(True, {})],
    "return_logit_entropies": [(True, {})],
    "return_next_embed_pred": [(True, {}, {}, {"add_continuous_pred_head": True})],
    "return_mems": [(True, {}, {}, {"max_mem_len": 4})],
    "return_attn": [(True, {})],
    "detach_mems": [(False, {"return_mems": True}, {}, {"max_mem_len": 4})],
    "recycle_steps": [(2, {}, {}, {"recycling": True})],
    "looped_steps": [(2, {}, NORMED, LOOPED)],
    "max_looped_steps": [(3, {}, NORMED, LOOPED)],
    "looped_pred_all_logits": [(True, {}, NORMED, LOOPED)],
    "looped_inference": [(False, {}, NORMED, LOOPED)],
    "looped_exit_prob_threshold": [(0.5, {}, NORMED, LOOPED)],
    "prepend_embeds": [(randn(2, 3, DIM), {})],
    "prepend_mask": [(keep(2, 3), {"prepend_embeds": randn(2, 3, DIM)})],
    "excise_prepend_embeds": [(True, {"prepend_embeds": randn(2, 3, DIM)})],
    "embed_ids": [({"kind": ids() % 4}, {}, {}, {"embed_num_tokens": {"kind": 4}})],
    "sum_embeds": [(randn(2, N, DIM), {})],
    "transform_token_embeds": [(torch.tanh, {})],
    "return_attn_z_loss": [(True, {})],
    "attn_z_loss_weight": [(0.5, {"return_attn_z_loss": True})],
    "token_emb_kwargs": [({}, {})],
    "to_logits_kwargs": [({}, {})],
}
TRAINING = {
    "return_outputs": [(True, {})],
    "lens": [(torch.tensor([N, 4]), {})],
}
GENERATION = {
    "seq_len": [(3, {})],
    "eos_token": [(2, {})],
    "temperature": [(0.0, {})],
    "prompt_lens": [(torch.tensor([N, 4]), {})],
    "filter_logits_fn": [("top_p", {})],
    "restrict_to_max_seq_len": [(True, {}), (False, {})],
    "amateur_model": [(None, {})],
    "filter_kwargs": [({}, {})],
    "contrastive_decode_kwargs": [({"beta": 0.1, "alpha": 0.1}, {})],
    "cache_kv": [(False, {}), (True, {})],
}
SEARCH = {
    "beams": [(2, {})],
    "return_beams_and_scores": [(True, {})],
    "stochastic": [(False, {})],
}
VALUES = LAYERS | WRAPPER | TRAINING | GENERATION | SEARCH
FUNCTIONS = {
    "Decoder": (LAYERS, lambda model, **call: model.attn_layers(randn(2, N, DIM), **call)),
    "TransformerWrapper": (LAYERS | WRAPPER, lambda model, **call: model(ids(), **call)),
    "AutoregressiveWrapper": (
        WRAPPER | TRAINING,  # the rest goes on to the wrapper
        lambda model, **call: generator(model)(ids(), **call),
    ),
    "generate": (
        LAYERS | WRAPPER | GENERATION,
        lambda model, **call: generator(model).generate(
            ids(), **{"seq_len": 4, "temperature": 0.0} | call
        ),
    ),
    "beam_search": (
        GENERATION | SEARCH | {name: VALUES[name] for name in seam.REFUSED_HERE["beam_search"]},
        lambda model, **call: generator(model).beam_search(ids(), **{"seq_len": 4} | call),
    ),
}


TAKEN_THERE = {
    *((function, "attn_mask") for function in ("Decoder", "TransformerWrapper")),
    *((function, name) for function in FUNCTIONS for name in seam.PLACES_AS),
    *((function, "return_gumbel_log_probs") for function in FUNCTIONS),  # without such attention
    ("AutoregressiveWrapper", "return_embeddings"),  # a loss without meaning
    ("generate", "self_attn_kv_residuals"),  # a text without meaning
    ("generate", "causal"),  # another text than without the cache
}
"""What x-transformers takes and we do not."""


def generator(model):
    package = xcope if isinstance(model, xcope.TransformerWrapper) else xt
    return package.AutoregressiveWrapper(model).eval()


def test_no_argument_of_the_installed_version_is_unknown():
    assert VALUES.keys() == {name for names in seam.CALLS.values() for name in names}
    for function, owner in {
        "Decoder": xt_parts.AttentionLayers,
        "TransformerWrapper": xt.TransformerWrapper,
    }.items():
        signature = [*inspect.signature(owner.forward).parameters]
        assert [*seam.CALLS[function]] == [name for name in signature[2:] if name != "kwargs"]
    assert {"prompts", "self"}.isdisjoint(seam.CALLS["generate"])
    assert seam.CALLS["generate"][:3] == ("seq_len", "eos_token", "temperature")
    assert seam.CALLS["beam_search"][:2] == ("seq_len", "beams")


def pair(scheme, flags, wrapper):
    """(theirs, ours) with the same weights."""
    models = []
    for package in (xt, xcope):
        torch.manual_seed(0)
        models.append(
            package.TransformerWrapper(
                num_tokens=TOKENS,
                max_seq_len=LENGTH,
                use_abs_pos_emb=False,
                attn_layers=package.Decoder(**SIZE, **SCHEMES[scheme], **flags),
                **wrapper,
            ).eval()
        )
    theirs, ours = models
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def tensors(out):
    """What people read of what a call gives."""
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, tuple | list):
        return [tensor for one in out for tensor in tensors(one)]
    names = ("last_hidden", "mems", "attn_z_loss", "logit_entropies", "memory_tokens")
    held = [getattr(out, name, None) for name in names]
    return [tensor for one in held if one is not None for tensor in tensors(one)]


ONLY_UNDER = {
    "prompt_lens": "rotary",
    # of the others x-transformers makes a bias that does not fit
    "self_attn_additional_kv": "rotary",
    "additional_kv_mask": "rotary",
    "detach_additional_kv": "rotary",
    "route_additional_kv_to_top": "rotary",
}


def cases():
    for function, (values, _) in FUNCTIONS.items():
        for index, (name, those) in enumerate(values.items()):
            for number, given in enumerate(those):
                scheme = [*SCHEMES][(index + number) % len(SCHEMES)]
                scheme = ONLY_UNDER.get(name, scheme)
                if function in ("generate", "beam_search") and scheme == "forgetting":
                    scheme = "t5"  # x-transformers' cache holds no gates
                yield pytest.param(
                    function, name, given, scheme, id=f"{function}-{name}-{number}-{scheme}"
                )


def answer(ask, model, call):
    """What a call gives, and what it raises."""
    torch.manual_seed(1)
    try:
        return ask(model, **call), None
    except Exception as error:
        return None, error


@pytest.mark.parametrize(("function", "name", "given", "scheme"), [*cases()])
def test_it_acts_as_in_x_transformers_or_is_refused_with_words(function, name, given, scheme):
    value, beside, flags, wrapper = (*given, {}, {})[:4]
    theirs, ours = pair(scheme, flags, wrapper)
    call, ask = {name: value, **beside}, FUNCTIONS[function][1]
    mine, refusal = answer(ask, ours, call)
    if refusal is not None:
        assert isinstance(refusal, FlagError), refusal
        assert refusal.flag in str(refusal)
        assert len(str(refusal)) > 30
        other, failure = answer(ask, theirs, call)
        assert failure is not None or (function, name) in TAKEN_THERE
        return
    other, _ = answer(ask, theirs, call)
    mine, other = tensors(mine), tensors(other)
    assert len(mine) == len(other) > 0
    for one, another in zip(mine, other, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("foo", "near"), [("retrun_attn", "return_attn"), ("msk", "mask")])
def test_an_unknown_argument_is_answered_with_the_nearest(scheme, foo, near):
    _, model = pair(scheme, {}, {})
    for function, (_, ask) in FUNCTIONS.items():
        if function == "Decoder" and near == "return_attn":
            continue
        with pytest.raises(
            FlagError, match=f"{function} has no flag '{foo}'; did you mean '{near}"
        ) as it:
            ask(model, **{foo: True})
        assert it.value.flag == foo


def test_arguments_by_their_place_are_those_by_name():
    theirs, ours = pair("rotary", CROSS, {})
    x, mask = randn(2, N, DIM), torch.arange(N) < torch.tensor([[N], [4]])
    context = GIVES_CONTEXT["context"]
    torch.testing.assert_close(
        ours.attn_layers(x, context, mask),
        theirs.attn_layers(x, context, mask),
        atol=1e-4,
        rtol=1e-3,
    )
    with pytest.raises(FlagError, match="mask must be a bool tensor"):
        ours.attn_layers(x, context, mask.float())
    with pytest.raises(FlagError, match="context is given twice to Decoder"):
        ours.attn_layers(x, context, context=context)
    theirs, ours = pair("rotary", {}, {})
    texts = [generator(one).generate(ids(), 4, None, 0.0) for one in (theirs, ours)]
    assert torch.equal(*texts)
    with pytest.raises(FlagError, match="temperature is given twice to generate"):
        generator(ours).generate(ids(), 4, None, 0.0, temperature=0.0)
    with pytest.raises(FlagError, match="takes 35 arguments, not more"):
        ours.attn_layers(x, *[None] * 40)


@pytest.mark.parametrize("build", [xcope.Decoder, xcope.TransformerWrapper])
@pytest.mark.parametrize("causal", [True, False])
def test_a_decoder_is_causal_and_says_what_reads_both_ways(build, causal):
    with pytest.raises(FlagError, match=r"a Decoder is causal.*Encoder.*cope_attention") as error:
        build(**{"dim": 32, "depth": 1}, causal=causal) if build is xcope.Decoder else build(
            num_tokens=4, max_seq_len=4, attn_layers=xcope.Decoder(dim=16, depth=1), causal=causal
        )
    assert error.value.flag == "causal"


@pytest.mark.parametrize("scheme", ["rotary", "none"])
def test_a_prefix_that_sees_all_of_itself(scheme):
    flags = SCHEMES.get(scheme, {})
    torch.manual_seed(0)
    theirs = xt.PrefixDecoder(**SIZE, **flags).eval()
    ours = xcope.Decoder(**SIZE, **flags).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = randn(2, N, DIM)
    expected = theirs(x, prefix_attn_len=SHOWN)
    torch.testing.assert_close(
        ours(x, causal=False, attn_mask=PREFIX), expected, atol=1e-4, rtol=1e-3
    )
    for mask in (PREFIX, torch.ones(N, N).bool()):
        with pytest.raises(FlagError, match=r"hides nothing.*a prefix.*causal=False"):
            ours(x, attn_mask=mask)
    with pytest.raises(FlagError, match=r"no flag 'prefix_attn_len'.*PrefixDecoder.*causal=False"):
        ours(x, prefix_attn_len=SHOWN)
    # what hides something is a mask beside causality, whatever it says of later tokens
    documents = torch.arange(N) // 4
    alike = documents[:, None] == documents
    torch.testing.assert_close(ours(x, attn_mask=alike), ours(x, attn_mask=alike.tril()))


def test_reading_both_ways_has_no_cache():
    _, model = pair("rotary", {}, {})
    with pytest.raises(FlagError, match=r"causal=False does not go together with cache.*cache_kv"):
        generator(model).generate(ids(), 3, causal=False)
    text = generator(model).generate(ids(), 3, causal=False, cache_kv=False)
    assert text.shape == (2, 3)
