"""Every keyword of the installed x-transformers acts as there, cached and padded, or is refused."""

import copy
import itertools
import random

import pytest
import torch
import x_transformers as xt
from keyword_values import (
    CONTEXT,
    DECODER,
    DIM,
    DIM_HEAD,
    HEADS,
    LENGTH,
    TOKENS,
    WRAPPER,
    Case,
)

import xcope
from xcope.errors import FlagError
from xcope.modules import seam

pytestmark = pytest.mark.long

SCHEMES = {
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True},
    "cope": {"attn_use_cope": True},
    "forgetting": {"attn_data_dependent_alibi": True},
}
SWITCHES = {flag for flags in SCHEMES.values() for flag in flags} | {
    "attn_use_rel_proj_pos_bias",
    "dynamic_pos_bias",
    "polar_pos_emb",
    "rotary_xpos",
}
NOT_WITH_FLASH = {"attn_use_cope", "rel_pos_bias"}  # x-transformers refuses it


def cases():
    """Each case of attention's under four schemes, one of the two biases in turn; others
    under two; unless it names its own.

    Rotations alone act on cross-attention, and nothing on feed-forward layers, which see a token at
    a time, or outside of the layers. What layers have beside attention meets all schemes by the
    same way.
    """
    others = itertools.cycle([name for name in SCHEMES if name != "rotary"])
    biases = itertools.cycle(["alibi", "t5"])
    of_attention = ("attn_", "rotate_", "qkv_", "max_mem_len", "add_value_residual", "heads")
    for keyword, values in (DECODER | WRAPPER).items():
        for index, case in enumerate(values):
            left_out = next(biases)
            schemes = [n for n in SCHEMES if n != left_out or n in case.refused_under]
            if not keyword.startswith(of_attention):
                schemes = list({"rotary": 1, next(others): 1, **dict.fromkeys(case.refused_under)})
            if SWITCHES & case.flags.keys():
                schemes = ["itself"]
            for name in schemes:
                yield pytest.param(keyword, case, name, id=f"{keyword}-{index}-{name}")


def test_no_keyword_of_the_installed_version_is_unknown():
    assert seam.upstream_decoder_flags() == DECODER.keys()
    assert seam.upstream_wrapper_flags() == WRAPPER.keys()


def built(package, flags, wrapper):
    size = {"dim": DIM, "depth": 2, "heads": HEADS, "attn_dim_head": DIM_HEAD, "verbose": False}
    around = {"num_tokens": TOKENS, "max_seq_len": LENGTH, "use_abs_pos_emb": False}
    torch.manual_seed(0)
    return package.TransformerWrapper(
        **around | copy.deepcopy(wrapper),
        attn_layers=package.Decoder(**size | copy.deepcopy(flags)),
    )


def as_x_transformers_has_it(flags):
    """Flags under which x-transformers builds the same."""
    flags = dict(flags)
    if NOT_WITH_FLASH & flags.keys():
        flags.pop("attn_flash", None)
    if flags.get("cross_attend"):  # there, schemes of self-attention pass on to cross-attention
        flags |= {"cross_attn_use_cope": False, "cross_attn_data_dependent_alibi": False}
    return flags


def filled(model):
    """The model with weights of which none is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def arguments(case, tokens):
    """What a call with these tokens needs beside them."""
    torch.manual_seed(2)
    call = {k: v(tokens) if callable(v) else v for k, v in case.call.items()}
    dim = case.flags.get("dim", DIM)
    if any(flag.startswith("use_adaptive") for flag in case.flags):
        width = case.flags.get("dim_condition", dim)
        call["condition"] = torch.randn(1, width).expand(len(tokens), -1)
    if case.flags.get("cross_attend"):
        width = case.flags.get("cross_attn_dim_context", dim)
        call["context"] = torch.randn(1, CONTEXT, width).expand(len(tokens), -1, -1)
    return call


def called(model, tokens, call):
    torch.manual_seed(3)
    random.seed(3)
    out = model(tokens, **call)
    return torch.stack(out) if isinstance(out, tuple) else out


def close(mine, other):
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)


def close_as_a_whole(mine, other, name):
    """Of gradients, whose entries may cancel."""
    assert (mine - other).norm() <= 5e-3 * other.norm() + 1e-5, name


@pytest.mark.parametrize(("keyword", "case", "scheme"), list(cases()))
def test_keyword(keyword, case, scheme):
    case = Case(**vars(case) | {"flags": case.flags | SCHEMES.get(scheme, {})})
    if case.refused or scheme in case.refused_under:
        with pytest.raises(FlagError) as caught:
            built(xcope, case.flags, case.wrapper)
        assert caught.value.flag in str(caught.value)
        assert caught.value.flag in {*case.flags, *case.wrapper, "position", "heads"}
        return
    ours, theirs = filled(built(xcope, case.flags, case.wrapper)), None
    if case.oracle:
        flags = as_x_transformers_has_it(case.flags)
        theirs = filled(built(xt, flags, case.wrapper))
        ours.load_state_dict(theirs.state_dict(), strict=True)
        check_effect(keyword, case, theirs)
        check_logits_and_gradients(case, ours, theirs)
    ours.eval()
    if not case.at_random:
        check_padding(case, ours)
        if case.generates:
            check_greedy_text(case, ours)


def check_effect(keyword, case, theirs):
    """That x-transformers gives something else without the keyword."""
    flags, wrapper = dict(case.flags), dict(case.wrapper)
    flags.pop(keyword, None)
    wrapper.pop(keyword, None)
    tokens = torch.randint(TOKENS, (1, 6))
    try:
        plain = built(xt, as_x_transformers_has_it(flags), wrapper)
    except Exception:
        return  # it is needed
    state = theirs.state_dict()
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        return
    plain.load_state_dict(dict(theirs.named_parameters()), strict=False)

    def differ(training):
        one, other = theirs.train(training), plain.train(training)
        call = arguments(case, tokens)
        outs = called(one, tokens, call), called(other, tokens, call)
        return not torch.allclose(*outs, atol=1e-5, rtol=1e-5)

    assert any(map(differ, (True, False))) == case.changes


def check_logits_and_gradients(case, ours, theirs):
    tokens = torch.randint(TOKENS, (2, 6))
    call = arguments(case, tokens)
    outs = [called(model, tokens, call) for model in (ours.train(), theirs.train())]
    for out in outs:
        out.square().mean().backward()
    close(*outs)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            close_as_a_whole(parameter.grad, expected[name], name)
    close(*(called(model, tokens, call) for model in (ours.eval(), theirs.eval())))


def check_padding(case, ours):
    row, other = torch.randint(TOKENS, (1, 6)), torch.randint(TOKENS, (1, 9))
    if not case.beside or "cu_seqlens" in case.call:  # packed rows are not padded
        return
    both = torch.cat((torch.cat((torch.zeros(1, 3).long(), row), dim=1), other))
    start = torch.tensor([3, 0])
    call = arguments(case, both)
    if not case.padded:
        with pytest.raises(FlagError, match="does not go together with seq_start_pos"):
            ours(both, seq_start_pos=start, **call)
        return
    alone = called(ours, row, arguments(case, row))
    beside = called(ours, both, {**call, "seq_start_pos": start})
    if beside.shape[1] == both.shape[1]:
        close(beside[0, 3:], alone[0])
    elif beside.shape[1:] == alone.shape[1:]:  # pooled
        close(beside[0], alone[0])
    else:  # of several heads
        close(beside[:, 0, 3:], alone[:, 0])


def check_greedy_text(case, ours):
    generator = xcope.AutoregressiveWrapper(ours).eval()
    row, other = torch.randint(TOKENS, (1, 6)), torch.randint(TOKENS, (1, 9))
    call = arguments(case, row)
    greedy = {"temperature": 0.0, "seq_len": 4}
    cached = generator.generate(row, **greedy, **call)
    assert torch.equal(cached, generator.generate(row, **greedy, cache_kv=False, **call))
    if case.padded and case.beside:
        call = arguments(case, torch.cat((row, row)))
        beside = generator.generate([row[0], other[0]], **greedy, **call)
        assert torch.equal(beside[:1], cached)
    if ours.can_cache_kv:
        call, text = arguments(case, row), torch.cat((row, cached), dim=1)
        call["input_not_include_cache"] = False
        _, cache = ours(row, return_intermediates=True, **call)
        for length in (7, 8):
            tokens = text[:, :length]
            out, cache = ours(tokens, cache=cache, return_intermediates=True, **call)
            close(out[:, -1], ours(tokens, **call)[:, -1])
