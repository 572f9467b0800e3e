"""Our schemes in models of Hugging Face transformers: what they compute, and what they refuse."""

import copy
import itertools
import logging
import math
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

transformers = pytest.importorskip("transformers")

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from xcope import schemes  # noqa: E402
from xcope.errors import FlagError  # noqa: E402
from xcope.integrations.transformers import (  # noqa: E402
    add_cope,
    from_pretrained,
    position_parameters,
    remove_position,
    set_position,
)
from xcope.positions import Slot  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB, WINDOW = 50, 4
SHARED = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
}
KINDS = {
    "gpt2": {"n_inner": 48, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": WINDOW},
    "gpt_neox": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "qwen2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3},
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": None, "sliding_window": WINDOW},
    "cohere2": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "qwen3_moe": {"head_dim": 8, **MOE},
    "deepseek_v3": LATENT,
}
"""What tiny models of these types are made of, beside `SHARED`."""

REFUSED = {
    "gemma2": ({"attn_logit_softcapping": 50.0}, "caps its logits"),
    "gpt_oss": ({"head_dim": 8, "num_local_experts": 2}, "sinks"),
    "bloom": ({}, "AttentionInterface"),
    "bert": ({}, "later ones"),
    "t5gemma": (None, "cross attention"),
}

OPTIONS = {
    "rotary_linear": {"factor": 2.0},
    "rotary_ntk": {"factor": 2.0},
    "rotary_yarn": {"factor": 2.0, "trained_len": 64},
    "rotary_clipped": {"clip": 1},
    "rotary_llama3": {"original_max_position_embeddings": 64},
    "rotary_hope": {"trained_len": 64},
    "window": {"size": 4, "sinks": 1},
}
NOT_HERE = ("cope_absolute", "rotary_dynamic", "rotary_longrope")
HERE = [
    name for name, kind in schemes().items() if kind.slot is not Slot.INPUT and name not in NOT_HERE
]


def config_of(kind, **options):
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    return cls(**(SHARED | KINDS.get(kind, {}) | options))


def fresh(kind, **options):
    """A tiny model whose attention is far from uniform, so that what changes it shows."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def trained(model):
    """Its schemes' parameters away from where they begin."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in position_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


@cache
def with_scheme(kind, name):
    return trained(set_position(fresh(kind), {"name": name, **OPTIONS.get(name, {})}))


def tokens(rows=2, n=11):
    return torch.randint(1, VOCAB, (rows, n), generator=torch.Generator().manual_seed(7))


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **{"use_cache": False, **kwargs}).logits


def near(got, wanted, atol=1e-5):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=1e-5)


# -- a pretrained model stays what it is ----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_cope_leaves_the_outputs_of_a_model_as_they_are_and_can_be_taken_out(kind):
    model, ids = fresh(kind), tokens(n=14)
    before, keys = logits(model, ids), set(model.state_dict())
    attention = model.config._attn_implementation
    assert add_cope(model) is model
    near(logits(model, ids), before)
    assert len(list(position_parameters(model))) == 2
    trained(model)
    assert (logits(model, ids) - before).abs().max() > 1e-4
    remove_position(model)
    assert torch.equal(logits(model, ids), before)
    assert set(model.state_dict()) == keys
    assert not hasattr(model.config, "xcope")
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_gives_the_text_that_it_gives_without(kind):
    model, ids = trained(add_cope(fresh(kind))), tokens(1, 9)
    arguments = {"max_new_tokens": 6, "do_sample": False}
    wanted = model.generate(ids, use_cache=False, **arguments)
    assert torch.equal(model.generate(ids, **arguments), wanted)


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_attend_in_a_way_of_their_own_are_refused_in_words(kind):
    options, words = REFUSED[kind]
    if options is None:
        text = {**SHARED, "head_dim": 8}
        config = transformers.T5GemmaConfig(encoder=text, decoder=text)
        model = transformers.T5GemmaForConditionalGeneration(config)
    else:
        model = fresh(kind, **options)
    before = copy.deepcopy(model.config.to_dict())
    with pytest.raises(FlagError, match=words) as raised:
        add_cope(model)
    assert type(model).__name__ in str(raised.value)
    assert model.config.to_dict() == before
    assert not list(position_parameters(model))


def test_two_models_of_one_config_do_not_share_their_positions():
    config = config_of("llama")
    first = transformers.LlamaForCausalLM(config)
    add_cope(first)
    second = transformers.LlamaForCausalLM(config)
    assert logits(second, tokens()).shape == (2, 11, VOCAB)
    set_position(second, "alibi")
    assert first.config.xcope["layers"] != second.config.xcope["layers"]


# -- what is computed, against loops ---------------------------------------------------------------


def by_loops(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """CoPE as the paper writes it, query by query and key by key, in float64."""
    table = module.xcope.cope.pos_emb.double()
    q, k, v = query.double(), key.double(), value.double()
    out, groups = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype), q.shape[1] // k.shape[1]
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        seen = [j for j in range(k.shape[2]) if attention_mask[b, 0, i, j]]
        count, logit = 0.0, {}
        for j in reversed(seen):
            s = scaling * q[b, h, i] @ k[b, h // groups, j]
            count += s.sigmoid().item()
            p = min(count, len(table) - 1)
            f, c = math.floor(p), min(math.floor(p) + 1, len(table) - 1)
            e = (1 - (p - f)) * table[f] + (p - f) * table[c]
            logit[j] = (s + q[b, h, i] @ e).item()
        if seen:
            weights = torch.tensor([logit[j] for j in seen], dtype=q.dtype).softmax(0)
            out[b, h, i] = weights @ v[b, h // groups, seen]
    return out.transpose(1, 2).to(query.dtype), None


AttentionInterface.register("loops", by_loops)
AttentionMaskInterface.register(
    "loops", lambda *args, **kwargs: sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "granite"])
def test_a_trained_cope_is_the_papers_loops_in_the_same_layers(kind, padding):
    model, ids = trained(add_cope(fresh(kind), max_pos=4)), tokens(n=9)
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[0, slice(0, 3) if padding == "left" else slice(6, 9)] = 0
    got = logits(model, ids, attention_mask=mask)
    model.config._attn_implementation = "loops"
    wanted = logits(model, ids, attention_mask=mask)
    near(got[mask.bool()], wanted[mask.bool()])


def test_gradients_reach_the_tables():
    model, ids = trained(add_cope(fresh("mistral"), max_pos=4)), tokens(n=9)
    grads = {}
    for name in ("xcope", "written out"):
        model.zero_grad()
        maps = name == "written out"
        model(ids, labels=ids, use_cache=False, output_attentions=maps).loss.backward()
        grads[name] = [parameter.grad.clone() for parameter in position_parameters(model)]
    for ours, theirs in zip(*grads.values(), strict=True):
        assert ours.abs().max() > 1e-4
        near(ours, theirs)


def test_rotary_like_the_models_gives_what_the_models_own_gives():
    for kind in ("llama", "phi", "mistral", "cohere2"):
        model, ids = fresh(kind), tokens()
        before = logits(model, ids)
        if kind == "cohere2":  # whose layers without a window have no rotary positions
            set_position(model, "rotary", layers=[0])
        else:
            set_position(model, "rotary")
        near(logits(model, ids), before)


def test_alibi_is_the_papers_bias_and_nothing_else():
    model, ids = set_position(fresh("gpt2"), "alibi"), tokens()
    got = logits(model, ids)
    i = torch.arange(ids.shape[1])
    slopes = torch.tensor([2.0 ** (-8 * h / 4) for h in (1, 2, 3, 4)])
    bias = -slopes[:, None, None] * (i[:, None] - i).abs()
    bias = bias.masked_fill(i[:, None] < i, -torch.inf)[None].expand(2, -1, -1, -1)
    own = remove_position(model)
    own.transformer.wpe.weight.data.zero_()
    near(got, logits(own, ids, attention_mask=bias))


@pytest.mark.parametrize("kind", KINDS)
def test_without_positions_only_the_set_of_earlier_tokens_matters(kind):
    wide = {"layer_types": ["full_attention"], "sliding_window": 64, "no_rope_layers": [1]}
    known = config_of(kind).to_dict()
    options = {name: value for name, value in wide.items() if name in known}
    model = fresh(kind, num_hidden_layers=1, **options)
    set_position(model, "none")
    ids = tokens(1, 8)
    other = ids[:, [3, 0, 5, 1, 6, 2, 4, 7]]
    near(logits(model, ids)[:, -1], logits(model, other)[:, -1])
    remove_position(model)
    if kind != "cohere2":  # whose layers without a window have no positions of their own
        assert (logits(model, ids)[:, -1] - logits(model, other)[:, -1]).abs().max() > 1e-4


def test_rotary_positions_go_from_the_chosen_layers_only():
    model, ids = add_cope(fresh("llama"), layers=[1], keep_rotary=False), tokens()
    got = logits(model, ids)
    own = remove_position(model)

    def still(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        kwargs["position_embeddings"] = (torch.ones_like(cos), torch.zeros_like(sin))
        return args, kwargs

    before = logits(own, ids)
    own.model.layers[1].self_attn.register_forward_pre_hook(still, with_kwargs=True)
    near(got, logits(own, ids))
    assert (got - before).abs().max() > 1e-4


# -- every scheme, in every way of transformers ----------------------------------------------------


@pytest.mark.parametrize("name", HERE)
def test_every_cache_gives_what_all_tokens_at_once_give(name):
    model, ids = with_scheme("mistral", name), tokens()
    wanted = logits(model, ids)
    caches = {
        "dynamic": transformers.DynamicCache(config=model.config),
        "static": transformers.StaticCache(config=model.config, max_cache_len=16),
    }
    for held in caches.values():
        steps = [ids[:, :4], ids[:, 4:7], *ids[:, 7:].split(1, dim=1)]
        got = [logits(model, step, use_cache=True, cache=held) for step in steps]
        near(torch.cat(got, dim=1), wanted)


@pytest.mark.parametrize("name", HERE)
def test_a_row_that_is_padded_is_as_alone(name):
    model, short, long = with_scheme("mistral", name), tokens(1, 5), tokens(2)[1:]
    alone = logits(model, short)
    nothing = torch.zeros(1, 6, dtype=torch.long)
    for side in ("left", "right"):
        row = torch.cat((nothing, short) if side == "left" else (short, nothing), dim=1)
        both = torch.cat((row, long))
        mask = (both != 0).long()
        at = (mask.cumsum(-1) - 1).clamp(min=0)
        got = logits(model, both, attention_mask=mask, position_ids=at)
        near(got[0, mask[0].bool()], alone[0])
    arguments = {"max_new_tokens": 9, "do_sample": False}
    wanted = model.generate(short, attention_mask=torch.ones_like(short), **arguments)
    both = torch.cat((torch.cat((nothing, short), dim=1), long))
    got = model.generate(both, attention_mask=(both != 0).long(), **arguments)
    assert torch.equal(got[:1, 11:], wanted[:, 5:])


@pytest.mark.parametrize("name", HERE)
def test_packed_documents_are_as_alone(name):
    ids = tokens()
    first, second = ids[:1], ids[1:, :7]
    row = torch.cat((first, second), dim=1)
    at = torch.cat((torch.arange(11), torch.arange(7)))[None]
    edges = torch.tensor([0, 11, 18], dtype=torch.int32)
    told = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": 11, "max_length_k": 11}
    for kind in ("llama", "mistral"):
        model = with_scheme(kind, name)
        wanted = torch.cat((logits(model, first), logits(model, second)), dim=1)
        near(logits(model, row, position_ids=at), wanted)
        near(logits(model, row, position_ids=at, **told), wanted)
        rows = torch.cat((row.flip(1), row))
        near(logits(model, rows, position_ids=at.expand(2, -1))[1:], wanted)


@pytest.mark.parametrize("name", HERE)
def test_attention_maps_are_given_where_they_are_asked_for(name):
    for kind in ("mistral", "gpt2"):  # which tells its layers nothing of this
        model, ids = with_scheme(kind, name), tokens()
        with torch.no_grad():
            out = model(ids, use_cache=False, output_attentions=True)
        near(out.logits, logits(model, ids))
        assert [tuple(maps.shape) for maps in out.attentions] == [(2, 4, 11, 11)] * 2
        given = out.attentions[0].sum(-1)
        if name == "sink":
            assert (given < 1).all()
        else:
            near(given, torch.ones(2, 4, 11))
        assert not out.attentions[1].triu(1).any()


@pytest.mark.parametrize("name", HERE)
def test_a_saved_model_comes_back_with_its_positions_and_a_copy_has_its_own(name, tmp_path):
    model, ids = with_scheme("mistral", name), tokens()
    wanted = logits(model, ids)
    model.save_pretrained(tmp_path)
    restored = from_pretrained(tmp_path)
    assert type(restored) is type(model)
    assert torch.equal(logits(restored, ids), wanted)
    twin = copy.deepcopy(model)
    for parameter in position_parameters(twin):
        parameter.data.zero_()
    assert torch.equal(logits(model, ids), wanted)
    set_position(twin, None)
    near(logits(twin, ids), logits(fresh("mistral"), ids))


@pytest.mark.parametrize("name", HERE)
def test_gradients_under_checkpointing_are_those_without(name):
    model, ids = copy.deepcopy(with_scheme("mistral", name)).train(), tokens()
    grads = []
    for reentrant in (None, True, False):
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for other in grads[1:]:
        for ours, plain in zip(other, grads[0], strict=True):
            near(ours, plain)


# -- parts of it ----------------------------------------------------------------------------------


def test_beam_search_lookup_and_assisted_decoding_give_the_text_of_no_cache():
    for name in ("cope", "forgetting", "alibi"):
        model, ids = with_scheme("llama", name), tokens(1, 6)
        arguments = {"max_new_tokens": 8, "do_sample": False}
        wanted = model.generate(ids, use_cache=False, **arguments)
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **arguments), wanted)
        assert torch.equal(model.generate(ids, assistant_model=model, **arguments), wanted)
        beams = {"num_beams": 3, **arguments}
        wanted = model.generate(ids, use_cache=False, **beams)
        assert torch.equal(model.generate(ids, **beams), wanted)


def test_layers_are_chosen_and_each_keeps_what_it_was_given(tmp_path):
    model, ids = fresh("llama", num_hidden_layers=4), tokens()
    before = logits(model, ids)
    add_cope(model, layers=[0, -1])
    near(logits(model, ids), before)
    trained(model)
    tables = [parameter.clone() for parameter in position_parameters(model)]
    set_position(model, {"layers": ["alibi", "t5"]}, layers=[1, 2])
    kinds = [list(layer.self_attn.xcope._modules) for layer in model.model.layers]
    assert kinds == [["cope"], ["alibi"], ["t5"], ["cope"]]
    kept = [layer.self_attn.xcope.cope.pos_emb for layer in (model.model.layers[i] for i in (0, 3))]
    assert all(map(torch.equal, kept, tables))
    wanted = logits(model, ids)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path), ids), wanted)
    remove_position(model, layers=[0, 1, 2])
    assert [bool(list(layer.self_attn.xcope.children())) for layer in model.model.layers] == [
        False, False, False, True,
    ]  # fmt: skip
    remove_position(model, layers=[3])
    assert torch.equal(logits(model, ids), before)


def test_groups_of_heads_and_several_schemes_at_once():
    ids = tokens()
    for position in (
        {"heads": ["cope", "alibi"]},
        {"heads": ["forgetting", "cope"]},
        ["cope", "alibi"],
        {"name": "cope", "per_head": True, "talking_heads": True, "soft_onehot": True},
        {"name": "cope", "val_gates": True},
    ):
        model = trained(set_position(fresh("llama"), position))
        wanted = logits(model, ids)
        held = transformers.DynamicCache(config=model.config)
        got = [logits(model, step, use_cache=True, cache=held) for step in ids.split(4, dim=1)]
        near(torch.cat(got, dim=1), wanted)
        with torch.no_grad():
            near(model(ids, use_cache=False, output_attentions=True).logits, wanted)


def test_learned_absolute_positions_stay_where_told_and_go_where_a_scheme_replaces_them():
    ids = tokens()
    model = fresh("gpt2")
    before = logits(model, ids)
    add_cope(model)
    near(logits(model, ids), before)
    near(logits(set_position(fresh("gpt2"), "none", keep_absolute=True), ids), before)
    near(logits(set_position(fresh("gpt2"), "none", layers=[0, 1]), ids), before)
    gone = fresh("gpt2")
    gone.transformer.wpe.weight.data.zero_()
    near(logits(set_position(model, "none"), ids), logits(gone, ids))


def test_bfloat16_models_and_autocast():
    model, ids = trained(add_cope(fresh("llama"))), tokens()
    wanted = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        near(logits(model, ids).float(), wanted, atol=0.1)
    narrow = trained(add_cope(fresh("llama").to(torch.bfloat16)))
    assert {parameter.dtype for parameter in position_parameters(narrow)} == {torch.bfloat16}
    near(logits(model.to(torch.bfloat16), ids).float(), wanted, atol=0.1)
    slopes = set_position(narrow, "alibi").model.layers[0].self_attn.xcope.alibi.slopes
    assert slopes.dtype == torch.float32
    forgetting = trained(set_position(fresh("llama").to(torch.bfloat16), "forgetting"))
    held = transformers.DynamicCache()
    got = [logits(forgetting, one, use_cache=True, cache=held) for one in ids.split(1, dim=1)]
    near(torch.cat(got, dim=1).float(), logits(forgetting, ids).float(), atol=0.05)


def test_masks_of_ones_own_and_what_is_not_causal():
    model, ids = trained(add_cope(fresh("llama"))), tokens()
    wanted = logits(model, ids)
    causal = torch.ones(11, 11, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    added = torch.zeros(2, 1, 11, 11).masked_fill(~causal, torch.finfo(torch.float32).min)
    near(logits(model, ids, attention_mask=causal), wanted)
    near(logits(model, ids, attention_mask=added), wanted)
    near(logits(model, ids, attention_mask=causal.long()), wanted)
    window = causal & causal.logical_not().roll(4, -1).tril().logical_not()
    assert (logits(model, ids, attention_mask=window) - wanted).abs().max() > 1e-4
    prefix = causal.clone()
    prefix[..., :4, :4] = True
    for mask in (prefix, torch.ones_like(causal)):
        with pytest.raises(FlagError, match="later ones"):
            model(ids, attention_mask=mask)
    with pytest.raises(FlagError, match="bias of the logits"):
        model(ids, attention_mask=added.masked_fill(causal, -0.5))
    model.model.layers[0].self_attn.is_causal = False
    with pytest.raises(FlagError, match="not causal"):
        model(ids)


def test_a_vision_model_gets_positions_in_its_language_model_only(tmp_path):
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=config_of("llama"),
        image_token_index=VOCAB - 1,
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    given = {"pixel_values": torch.randn(1, 3, 16, 16)}
    ids = torch.cat((torch.full((1, 4), VOCAB - 1), tokens(1).clamp(max=VOCAB - 2)), dim=1)
    before = logits(model, ids, **given)
    near(logits(add_cope(model), ids, **given), before)
    trained(model)
    wanted = logits(model, ids, **given)
    assert (wanted - before).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path), ids, **given), wanted)


def test_long_prompts_are_read_in_pieces():
    for kind in ("llama", "mistral"):
        model, ids = with_scheme(kind, "cope"), tokens(1)
        arguments = {"max_new_tokens": 6, "do_sample": False}
        wanted = model.generate(ids, **arguments)
        for held in ("dynamic", "static"):
            pieces = {"prefill_chunk_size": 3, "cache_implementation": held}
            assert torch.equal(model.generate(ids, **pieces, **arguments), wanted)


def test_packed_documents_beside_a_cache_are_refused():
    model, ids = with_scheme("llama", "cope"), tokens(1, 8)
    at = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(FlagError, match="use_cache=False"):
        model(ids, position_ids=at, use_cache=True)


def test_another_attention_implementation_does_not_leave_the_positions_out_in_silence():
    model, ids = trained(add_cope(fresh("llama"))), tokens()
    wanted = logits(model, ids)
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        with pytest.raises(FlagError, match="remove_position"):
            model(ids)
    model.set_attn_implementation("xcope")
    assert torch.equal(logits(model, ids), wanted)
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([ids[0].tolist()], transformers.GenerationConfig(max_new_tokens=2))


def test_attention_dropout_drops_in_training_and_tells_of_its_memory(caplog):
    model = trained(add_cope(fresh("llama", attention_dropout=0.5))).train()
    ids = tokens()
    with caplog.at_level(logging.WARNING):
        first, second = (model(ids, use_cache=False).logits for _ in range(2))
    assert "(b h n n)" in caplog.text
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(logits(model, ids), logits(model, ids))


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor holds, masks included."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return out


@pytest.mark.parametrize("name", ["cope", "alibi", "t5", "forgetting"])
def test_training_holds_no_tensor_of_all_pairs(name):
    n = 400
    for kind in ("llama", "mistral"):
        model = trained(set_position(fresh(kind, max_position_embeddings=n), name)).train()
        ids, mask = tokens(1, n), torch.ones(1, n, dtype=torch.long)
        mask[0, :5] = 0
        with Largest() as largest:
            hidden = model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            hidden.sum().backward()
        assert largest.numbers < n * n / 2


def test_a_compiled_model_is_one_graph_and_gives_the_same():
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    model = fresh("llama", num_hidden_layers=1, attention_dropout=0.1)
    trained(set_position(model, ["cope", "alibi"]))
    torch._dynamo.reset()  # which counts the models that it has compiled
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, wanted = (logits(one, ids, attention_mask=mask) for one in (compiled, model))
    near(got[mask.bool()], wanted[mask.bool()])
    compiled.train()
    compiled(ids, labels=ids, use_cache=False).loss.backward()
    assert all(parameter.grad.any() for parameter in position_parameters(model))


def test_generation_is_compiled_with_a_static_cache():
    model, ids = trained(set_position(fresh("llama", num_hidden_layers=1), "forgetting")), tokens()
    wanted = model.generate(ids, max_new_tokens=3, do_sample=False)
    torch._dynamo.reset()
    step, plain = model.forward, []

    def forward(*args, **kwargs):
        one = kwargs["input_ids"].shape[1] == 1
        plain.append(not one)
        return (compiled if one else step)(*args, **kwargs)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    model.forward = forward
    got = model.generate(ids, max_new_tokens=3, do_sample=False, cache_implementation="static")
    assert plain == [True, False, False]
    assert torch.equal(got, wanted)


WRONG = {
    "there is no layer 5": lambda model: add_cope(model, layers=[5]),
    "names no layer": lambda model: add_cope(model, layers=[]),
    "a list of numbers": lambda model: add_cope(model, layers=1),
    "'cpoe' is not a scheme": lambda model: set_position(model, "cpoe"),
    "cope_max_pos=0": lambda model: add_cope(model, max_pos=0),
    "'maxpos'": lambda model: add_cope(model, maxpos=3),
    "cope_sep_keys": lambda model: add_cope(model, sep_keys=True),
    "cope_shared": lambda model: add_cope(model, shared=True),
    "relative_max_pos": lambda model: set_position(model, {"name": "relative", "max_pos": "block"}),
    "cope_val_gates.*keep_rotary=False": lambda model: add_cope(model, val_gates=True),
    "turn queries and keys twice": lambda model: set_position(model, "rotary", keep_rotary=True),
    "alibi_random_max": lambda model: set_position(model, {"name": "alibi", "random_max": 64}),
    "kerple_shared=True": lambda model: set_position(model, {"name": "kerple", "shared": True}),
    "'absolute'.*keep_absolute": lambda model: set_position(model, ["absolute", "cope"]),
    "rotary_yarn": lambda model: set_position(model, {"name": "rotary_dynamic", "trained_len": 9}),
    "3 equal groups": lambda model: set_position(model, {"heads": ["cope", "alibi", "none"]}),
    "4 layers, but 2": lambda model: set_position(
        model, {"layers": ["cope", "alibi", "t5", "none"]}
    ),
    "no model of transformers": lambda model: add_cope(torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_makes_no_sense_is_refused_by_name_and_changes_nothing(words):
    model = fresh("llama")
    before = model.config.to_dict()
    with pytest.raises(FlagError, match=words):
        WRONG[words](model)
    assert model.config.to_dict() == before
    assert not list(position_parameters(model))
