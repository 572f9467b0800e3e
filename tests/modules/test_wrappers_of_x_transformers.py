"""x-transformers' own wrappers give around our decoder what they give around theirs."""

import importlib
import inspect
import pkgutil
import random

import pytest
import torch
import x_transformers as xt
from torch import nn
from torch.utils._pytree import tree_flatten

import xcope
from xcope.errors import FlagError
from xcope.modules import logits_kept

TOKENS, LENGTH, DIM = 20, 32, 32
SIZE = {"dim": DIM, "depth": 2, "heads": 4, "attn_dim_head": 8, "verbose": False}
SCHEMES = {
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "cope": {"attn_use_cope": True},
}
TAKES = {"attn_layers", "net", "model", "decoder", "forward_decoder"}
PARTS = {
    "EpisodicMemoryWrapper",
    "ResidualDynamics",
    "SelfCritic",
    "ViTransformerWrapper",
}
"""Take a network, but are made by other wrappers, or for other networks than decoders."""


def installed():
    """Every class of x-transformers that is built around something."""
    found = {}
    for info in pkgutil.iter_modules(xt.__path__):
        module = importlib.import_module(f"x_transformers.{info.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and issubclass(kind, nn.Module):
                takes = inspect.signature(kind.__init__).parameters.keys() & TAKES
                if takes and name not in PARTS:
                    found[name] = kind
    return found


KINDS = installed()


def around(layers, **flags):
    return xt.TransformerWrapper(
        num_tokens=TOKENS,
        max_seq_len=LENGTH,
        attn_layers=layers,
        **{"use_abs_pos_emb": False} | flags,
    )


def continuous(layers, **flags):
    return xt.ContinuousTransformerWrapper(
        dim_in=6,
        dim_out=6,
        max_seq_len=LENGTH,
        attn_layers=layers,
        **{"use_abs_pos_emb": False} | flags,
    )


def xval(layers):
    return xt.XValTransformerWrapper(
        num_tokens=TOKENS,
        numerical_token_id=3,
        max_seq_len=LENGTH,
        use_abs_pos_emb=False,
        attn_layers=layers,
    )


def tokens(n=9):
    return torch.randint(4, TOKENS, (2, n))


def vectors(n=9):
    return torch.randn(2, n, 6)


def greedy(model, prompt, **call):
    return model.generate(prompt, 5, temperature=0.0, **call)


def preference(model):
    prompt = torch.arange(9).expand(2, 9) < 4
    return model(tokens(), tokens(), prompt_mask=prompt)


# name → flags of the decoder, the wrapper around it, what it is asked
WRAPPERS = {
    "TransformerWrapper": (
        {},
        around,
        lambda m: (m(tokens()), m(tokens(), seq_start_pos=torch.tensor([0, 3]))[1, 3:]),
    ),
    "ContinuousTransformerWrapper": (
        {},
        continuous,
        lambda m: m(vectors()),
    ),
    "MultiInputTransformerWrapper": (
        {},
        lambda d: KINDS["MultiInputTransformerWrapper"](
            num_tokens={"a": TOKENS, "b": TOKENS},
            max_seq_len=LENGTH,
            use_abs_pos_emb=False,
            attn_layers=d,
        ),
        lambda m: m({"a": tokens(), "b": tokens()}),
    ),
    "XValTransformerWrapper": ({}, xval, lambda m: m(tokens(), torch.randn(2, 9))),
    "AutoregressiveWrapper": (
        {},
        lambda d: xt.AutoregressiveWrapper(around(d)),
        lambda m: (m(tokens()), greedy(m, tokens()), m.beam_search(tokens(), 4)),
    ),
    "ContinuousAutoregressiveWrapper": (
        {},
        lambda d: xt.ContinuousAutoregressiveWrapper(continuous(d)),
        lambda m: (m(vectors()), m.generate(vectors(), 4)),
    ),
    "XValAutoregressiveWrapper": (
        {},
        lambda d: xt.XValAutoregressiveWrapper(xval(d)),
        lambda m: m(tokens(), torch.randn(2, 9)),
    ),
    "NonAutoregressiveWrapper": (
        {},
        lambda d: xt.NonAutoregressiveWrapper(around(d), mask_id=0),
        lambda m: m(torch.randint(4, TOKENS, (2, LENGTH))).loss,
    ),
    "BeliefStateWrapper": (
        {},
        lambda d: xt.BeliefStateWrapper(around(d)),
        lambda m: (
            m(tokens()),
            m.generate_with_suffix_cond(tokens()[:1], 4, temperature=0.0, cache_kv=True),
        ),
    ),
    "NextLatentWrapper": (
        {},
        lambda d: xt.NextLatentWrapper(around(d), dim=DIM),
        lambda m: m(tokens()),
    ),
    "XLAutoregressiveWrapper": (
        {},
        lambda d: xt.XLAutoregressiveWrapper(around(d, max_mem_len=4)),
        lambda m: (m(tokens()), greedy(m, tokens())),
    ),
    "DPO": ({}, lambda d: xt.DPO(around(d)), preference),
    "EntropyBasedTokenizer": (
        {},
        lambda d: xt.EntropyBasedTokenizer(around(d), entropy_threshold=2.9),
        lambda m: m(tokens()),
    ),
    "DiscoverDecoder": (
        {},
        lambda d: KINDS["DiscoverDecoder"](
            decoder=around(d), num_fillers=TOKENS, bos_id=1, pad_id=0, max_seq_len=LENGTH
        ),
        lambda m: m(tokens(), tokens(4)),
    ),
    "FullBandwidth": (
        {"depth_scale_residual": True},
        lambda d: KINDS["FullBandwidth"](around(d, tie_embedding=True, post_emb_norm=True)),
        lambda m: (m(tokens()), greedy(m, tokens())),
    ),
    "LatentAutoregressive": (
        {},
        lambda d: KINDS["LatentAutoregressive"](around(d), dim=DIM),
        lambda m: m(tokens()),
    ),
    "Recirculation": (
        {},
        lambda d: KINDS["Recirculation"](around(d), source_layer=1, destination_layer=0),
        lambda m: m(tokens()),
    ),
    "UniversalPretrainWrapper": (
        {},
        lambda d: KINDS["UniversalPretrainWrapper"](
            around(d),
            buffer_size=4,
            num_reset=2,
            batch_size=2,
            seq_len=8,
            seed_length=2,
        ),
        lambda m: m(),
    ),
    "XMLatentDecoder": (
        {},
        lambda d: KINDS["XMLatentDecoder"](around(d), num_latents=2),
        lambda m: m(tokens()),
    ),
}


def test_no_wrapper_of_the_installed_version_is_unknown():
    assert installed().keys() == WRAPPERS.keys()


def asked(model, question):
    torch.manual_seed(2)
    random.seed(2)
    leaves, _ = tree_flatten(question(model))
    assert leaves
    return leaves


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapper(name, scheme):
    flags, wrap, question = WRAPPERS[name]
    pair = []
    for package in (xt, xcope):
        torch.manual_seed(0)
        pair.append(wrap(package.Decoder(**SIZE, **flags, **SCHEMES[scheme])).eval())
    theirs, ours = pair
    if name == "Recirculation" and scheme != "cope":
        # it makes rotary's angles itself, and tells the place of the newest token alone
        refusal = {"rotary": "rotary_pos_emb is not taken", "alibi": "pos has 1 places"}
        with pytest.raises(FlagError, match=refusal[scheme]):
            asked(ours, question)
        return
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for mine, other in zip(asked(ours, question), asked(theirs, question), strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
        else:
            assert mine == other


@pytest.mark.parametrize("position", ["none", "rotary", "alibi", "t5", "cope", "forgetting"])
@pytest.mark.parametrize("wrap", [around, continuous], ids=["tokens", "vectors"])
def test_no_wrapper_adds_absolute_positions_to_a_scheme_that_is_named(wrap, position):
    layers = xcope.Decoder(**SIZE, position=position)
    assert layers.disable_abs_pos_emb
    model = wrap(layers, use_abs_pos_emb=True)
    assert not any(name.startswith("pos_emb") for name in model.state_dict())


def test_wrappers_add_absolute_positions_where_none_is_named_or_these_are():
    for flags in ({}, {"position": "absolute"}, {"position": "cope", "disable_abs_pos_emb": False}):
        model = continuous(xcope.Decoder(**SIZE, **flags), use_abs_pos_emb=True)
        assert "pos_emb.emb.weight" in model.state_dict()
    assert xcope.Decoder(**SIZE, disable_abs_pos_emb=True).disable_abs_pos_emb


def test_wrappers_that_ask_the_attentions_keep_no_cache_where_none_can_be_kept():
    assert continuous(xcope.Decoder(**SIZE, position="rotary")).can_cache_kv
    assert not continuous(xcope.Decoder(**SIZE, position="rotary", shift_tokens=1)).can_cache_kv


MAPPED = {
    "TransformerWrapper": lambda m, **how: m(tokens(), **how),
    "ContinuousTransformerWrapper": lambda m, **how: m(vectors(), **how),
    "MultiInputTransformerWrapper": lambda m, **how: m({"a": tokens(), "b": tokens()}, **how),
    "XValTransformerWrapper": lambda m, **how: m(tokens(), torch.randn(2, 9), **how),
}


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.parametrize("scheme", ["rotary", "alibi", "cope"])
def test_attention_maps_are_refused_by_name_or_kept(name, scheme):
    _, wrap, _ = WRAPPERS[name]
    theirs, ours = (
        wrap(package.Decoder(**SIZE, **SCHEMES[scheme])).eval() for package in (xt, xcope)
    )
    ask = MAPPED[name]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with pytest.raises(FlagError, match="logits_kept"):
        ask(ours, return_attn=True)
    torch.manual_seed(1)
    wanted = ask(theirs, return_attn=True)[-1]
    torch.manual_seed(1)
    with logits_kept(ours):
        kept = ask(ours, return_attn=True)[-1]
    assert len(kept) == len(wanted) > 0
    for mine, other in zip(kept, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
