"""Models that x-transformers built are the same after `convert`, and after `revert`."""

import copy
import itertools
import random

import pytest
import torch
import x_transformers as xt
from keyword_values import CONTEXT, DECODER, DIM, DIM_HEAD, HEADS, LENGTH, TOKENS, WRAPPER

import xcope
from xcope.errors import FlagError
from xcope.integrations.x_transformers import convert, revert

SCHEMES = {
    "none": {},
    "absolute": {},
    "sinusoidal": {},
    "rotary": {"rotary_pos_emb": True},
    "interpolated": {"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0},
    "rescaled": {"rotary_pos_emb": True, "rotary_base_rescale_factor": 4.0},
    "xpos": {"rotary_xpos": True},
    "pope": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "slopes": {"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.5, 0.2, 0.1]}},
    "t5": {"rel_pos_bias": True, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 12},
    "dynamic": {"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True},
    "log distance": {"dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True},
    "forgetting": {"attn_data_dependent_alibi": True},
    "forgetting, dynamic unread": {
        "attn_data_dependent_alibi": True,
        "dynamic_pos_bias": True,
        "attn_data_dependent_alibi_kwargs": {"post_log_scale": 0.5},
    },
    "cope": {"attn_use_cope": True, "attn_cope_max_pos": 5},
    "cope in a layer": {"attn_use_cope": (False, True)},
    "cope, rotary": {"attn_use_cope": True, "rotary_pos_emb": True},
    "cope, alibi": {"attn_use_cope": True, "alibi_pos_bias": True},
    "talking heads": {"attn_use_cope": True, "attn_cope_talking_heads": True},
    "per row": {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True},
    "projected": {"attn_use_rel_proj_pos_bias": True},
}
WRAPPERS = {"none": {"use_abs_pos_emb": False}, "sinusoidal": {"scaled_sinu_pos_emb": True}}
PLAIN = {"rotary", "alibi", "t5", "cope", "forgetting"}


def built(flags, wrapper=None):
    """x-transformers' model of which every parameter acts."""
    size = {"dim": DIM, "depth": 2, "heads": HEADS, "attn_dim_head": DIM_HEAD, "verbose": False}
    torch.manual_seed(0)
    model = xt.TransformerWrapper(
        **{"num_tokens": TOKENS, "max_seq_len": LENGTH} | copy.deepcopy(wrapper or {}),
        attn_layers=xt.Decoder(**size | copy.deepcopy(flags)),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def of_scheme(name, **flags):
    return built(SCHEMES[name] | flags, WRAPPERS.get(name)).eval()


def tokens(n=9, b=2):
    return torch.randint(TOKENS, (b, n), generator=torch.Generator().manual_seed(n))


def named(model):
    return [(name, id(parameter)) for name, parameter in model.named_parameters()]


def classes(model):
    return [type(module) for module in model.modules()]


def attributes(model):
    return [sorted(vars(module)) for module in model.modules()]


def called(model, ids, **call):
    torch.manual_seed(3)
    random.seed(3)
    out = model(ids, **call)
    return torch.stack(out) if isinstance(out, tuple) else out


def gradients(model, ids, **call):
    model.zero_grad()
    called(model, ids, **call).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def close(mine, other, **tolerance):
    torch.testing.assert_close(mine, other, **tolerance or {"atol": 1e-5, "rtol": 1e-4})


def close_gradients(mine, other):
    assert mine.keys() == other.keys()
    for name, gradient in other.items():
        assert (mine[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (mine[name] - gradient).norm() <= 5e-3 * gradient.norm() + 1e-5, name


@pytest.mark.parametrize("name", SCHEMES)
def test_converted_and_reverted_it_is_the_same_model(name):
    model = of_scheme(name)
    before, truth = named(model), copy.deepcopy(model)
    states = model.state_dict()
    random_numbers = torch.get_rng_state()
    report = convert(model)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert isinstance(model, xcope.TransformerWrapper)
    assert isinstance(model.attn_layers, xcope.Decoder)
    assert not report.left
    assert bool(report.whole) == (name in ("per row", "projected"))
    assert named(model) == before
    close(model(tokens()), truth(tokens()))
    close_gradients(gradients(model.train(), tokens()), gradients(truth.train(), tokens()))
    truth.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(states, strict=True)
    assert list(model.state_dict()) == list(states)
    revert(model)
    assert named(model) == before
    assert list(model.state_dict()) == list(states)
    assert classes(model) == classes(truth)
    assert attributes(model) == attributes(truth)
    assert torch.equal(model.eval()(tokens()), truth.eval()(tokens()))


NOT_CACHED = {
    "forgetting",
    "forgetting, dynamic unread",
    "per row",
}  # x-transformers' cache holds no gates


@pytest.mark.parametrize("name", SCHEMES)
def test_the_greedy_text_stays_with_and_without_cache(name):
    model = xt.AutoregressiveWrapper(of_scheme(name)).eval()
    truth = copy.deepcopy(model)
    convert(model)
    # past max_seq_len a window slides over the text, unless absolute positions end there
    past_the_end = 6 if truth.net.can_cache_kv_outside_max_seq_len else 0
    greedy = {"seq_len": LENGTH - 9 + past_the_end, "temperature": 0.0}
    for cache_kv in (True, False):
        known = cache_kv and name not in NOT_CACHED
        expected = truth.generate(tokens(), **greedy, cache_kv=known)
        assert len(set(expected.flatten().tolist())) > 2, "a constant text would compare nothing"
        assert torch.equal(model.generate(tokens(), **greedy, cache_kv=cache_kv), expected)


def cases():
    """Each value of each keyword, under one scheme after the other."""
    schemes = itertools.cycle(sorted(PLAIN))
    switches = {flag for flags in SCHEMES.values() for flag in flags}
    for keyword, values in (DECODER | WRAPPER).items():
        for index, case in enumerate(values):
            name = next(schemes)
            flags = {} if switches & case.flags.keys() else SCHEMES[name]
            yield pytest.param(case, flags, id=f"{keyword}-{index}-{name}")


@pytest.mark.parametrize(("case", "flags"), list(cases()))
def test_with_every_keyword_it_is_the_same_or_stays_as_it_was(case, flags):
    flags = case.flags | flags
    if flags.get("cross_attend"):  # there, schemes of self-attention pass on to cross-attention
        flags |= {"cross_attn_use_cope": False, "cross_attn_data_dependent_alibi": False}
    ids = tokens(6)
    call = arguments(case.call, flags, ids)
    try:
        model, truth = built(flags, case.wrapper), built(flags, case.wrapper)
        expected = gradients(truth, ids, **call)
    except Exception:
        pytest.skip("x-transformers cannot do it")
    before = classes(model), attributes(model), named(model)
    try:
        convert(model)
    except FlagError:
        assert case.refused or case.refused_under
        assert before == (classes(model), attributes(model), named(model))
    close_gradients(gradients(model, ids, **call), expected)
    for training in (True, False):
        truth_out = called(truth.train(training), ids, **call)
        close(called(model.train(training), ids, **call), truth_out, atol=1e-4, rtol=1e-3)
    assert named(model) == before[2]
    if type(model) is not xt.TransformerWrapper:
        revert(model)
    assert before[:2] == (classes(model), attributes(model))
    close(called(model, ids, **call), truth_out)


def arguments(given, flags, ids):
    """What a call with these tokens needs beside them."""
    torch.manual_seed(2)
    call = {k: v(ids) if callable(v) else v for k, v in given.items()}
    dim = flags.get("dim", DIM)
    if any(flag.startswith("use_adaptive") for flag in flags):
        call["condition"] = torch.randn(len(ids), flags.get("dim_condition", dim))
    if flags.get("cross_attend"):
        width = flags.get("cross_attn_dim_context", dim)
        call["context"] = torch.randn(len(ids), CONTEXT, width)
    return call
