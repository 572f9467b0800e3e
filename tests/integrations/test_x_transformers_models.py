"""Models that x-transformers built are the same after `convert`, and after `revert`."""

import copy
import itertools
import pickle
import random
import re

import pytest
import torch
import x_transformers as xt
from keyword_values import CONTEXT, DECODER, DIM, DIM_HEAD, HEADS, LENGTH, TOKENS, WRAPPER
from torch import nn
from x_transformers import x_transformers as xt_parts

import xcope
from xcope.errors import FlagError
from xcope.integrations.x_transformers import convert, revert
from xcope.modules import seam

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
    assert bool(report.whole) == (name == "projected")
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
    past_the_end = 3 if truth.net.can_cache_kv_outside_max_seq_len else 0
    greedy = {"seq_len": LENGTH - 24 + past_the_end, "temperature": 0.0}
    for cache_kv in (True, False):
        known = cache_kv and name not in NOT_CACHED
        expected = truth.generate(tokens(24), **greedy, cache_kv=known)
        assert len(set(expected.flatten().tolist())) > 2, "a constant text would compare nothing"
        assert torch.equal(model.generate(tokens(24), **greedy, cache_kv=cache_kv), expected)


def cases():
    """Values of each keyword of what is exchanged, under one scheme after the other."""
    schemes = itertools.cycle(sorted(PLAIN))
    switches = {flag for flags in SCHEMES.values() for flag in flags}
    several = {"rotate_num_heads", "attn_num_mem_kv", "qkv_receive_diff_residuals"}
    for keyword, values in (DECODER | WRAPPER).items():
        if keyword.startswith(("ff_", "cross_attn_")) and keyword != "cross_attn_kv_heads":
            continue
        for index, case in enumerate(values if keyword in several else values[:1]):
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
    truth_out = called(truth.eval(), ids, **call)
    close(called(model.eval(), ids, **call), truth_out, atol=1e-4, rtol=1e-3)
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


NARROW = [(name, torch.bfloat16) for name in SCHEMES]
WIDE = [(name, dtype) for name in ("xpos", "slopes") for dtype in (torch.float16, torch.float64)]


@pytest.mark.parametrize(("name", "dtype"), NARROW + WIDE)
def test_in_every_dtype_it_is_as_near_to_float32_as_x_transformers(name, dtype):
    exact = of_scheme(name)(tokens()).detach()
    model = of_scheme(name).to(dtype)
    truth = copy.deepcopy(model)
    convert(model)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    error = (model(tokens()) - exact).norm()
    if "dynamic" in name or name == "log distance":  # x-transformers' network takes float32 alone
        assert error < (0.1 if dtype == torch.bfloat16 else 0.02) * exact.norm()
        return
    assert error <= 2 * (truth(tokens()) - exact).norm() + 1e-5
    revert(model)
    assert (model(tokens()) - exact).norm() <= 2 * (truth(tokens()) - exact).norm() + 1e-5


def trained(model, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(tokens(9 + step)).square().mean().backward()
        optimizer.step()


def test_an_optimiser_from_before_goes_on_and_its_state_loads():
    model, truth = of_scheme("cope, rotary").train(), of_scheme("cope, rotary").train()
    model.attn_layers.layers[1][1].requires_grad_(False)
    truth.attn_layers.layers[1][1].requires_grad_(False)
    optimizers = [torch.optim.Adam(one.parameters(), lr=1e-3) for one in (model, truth)]
    for one, optimizer in zip((model, truth), optimizers, strict=True):
        trained(one, optimizer)
    convert(model)
    assert model.training
    again = torch.optim.Adam(model.parameters(), lr=1e-3)
    again.load_state_dict(optimizers[0].state_dict())  # by the order of the parameters
    trained(model, again)
    trained(truth, optimizers[1])
    close(model.eval()(tokens()), truth.eval()(tokens()), atol=1e-4, rtol=1e-3)
    frozen = [p.requires_grad for p in model.parameters()]
    assert frozen == [p.requires_grad for p in truth.parameters()]


def test_hooks_stay_and_their_handles_remove_them():
    model = of_scheme("alibi")
    seen = []

    def note(name):
        return lambda *_: seen.append(name)

    attention = model.attn_layers.layers[0][1]
    places = {"model": model, "layers": model.attn_layers, "attention": attention}
    places["attend"] = attention.attend
    handles = [one.register_forward_hook(note(name)) for name, one in places.items()]
    handles.append(attention.to_q.weight.register_hook(note("gradient")))
    for exchange in (convert, revert):
        exchange(model)
        seen.clear()
        model(tokens()).sum().backward()
        assert {*seen} == {*places, "gradient"}
    convert(model)
    for handle in handles:
        handle.remove()
    seen.clear()
    model(tokens()).sum().backward()
    assert not seen


class Nested(nn.Module):
    """A model of one's own, with a stack of layers at some depth in it."""

    def __init__(self, layers):
        super().__init__()
        self.body = nn.ModuleDict({"stack": nn.Sequential(layers)})

    def forward(self, x):
        return self.body["stack"](x)


def layers_of(cls=xt.Decoder, **flags):
    size = {"dim": DIM, "depth": 2, "heads": HEADS, "attn_dim_head": DIM_HEAD, "verbose": False}
    torch.manual_seed(0)
    return cls(**size | flags).eval()


@pytest.mark.parametrize(
    ("cls", "flags"),
    [
        (xt.Decoder, {"rel_pos_bias": True}),
        (xt_parts.AttentionLayers, {"rel_pos_bias": True, "causal": True}),
        (xt.TransformerBlock, {"alibi_pos_bias": True, "causal": True}),
    ],
)
def test_layers_alone_and_inside_other_modules(cls, flags):
    x = torch.randn(2, 9, DIM)
    for place, path in ((lambda layers: layers, cls.__name__), (Nested, "body.stack.0")):
        model = place(layers_of(cls, **flags))
        truth = copy.deepcopy(model)
        assert [*convert(model).done] == [path]
        assert any(isinstance(module, xcope.Decoder) for module in model.modules())
        close(model(x), truth(x))
        revert(model)
        close(model(x), truth(x))


def test_what_cannot_be_converted_is_named_and_stays():
    class OfOnesOwn(xt.Decoder):
        def forward(self, x, **kwargs):
            return super().forward(x + 1, **kwargs)

    model = nn.ModuleDict(
        {
            "encoder": layers_of(xt.Encoder, rel_pos_bias=True),
            "prefix": layers_of(xt.PrefixDecoder),
            "cross": layers_of(xt.CrossAttender, causal=True),
            "own": layers_of(OfOnesOwn),
            "both": layers_of(polar_pos_emb=True, attn_use_cope=True),
            "memories": layers_of(polar_pos_emb=True, attn_num_mem_kv=2),
            "decoder": layers_of(attn_use_cope=True),
        }
    )
    before = {name: (classes(part), attributes(part)) for name, part in model.items()}
    report = convert(model)
    assert [*report.done] == ["decoder"]
    reasons = {
        "encoder": "Encoder is not causal, and our operators are for decoders",
        "prefix": "PrefixDecoder is not causal",
        "cross": "CrossAttender is no class",
        "own": "OfOnesOwn is no class of x-transformers",
        "both": "'cope' and 'pope' do not go together|'pope' and 'cope' do not go together",
        "memories": "attn_num_mem_kv=2 is not allowed with position 'pope'",
    }
    assert report.left.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert re.search(reason, report.left[name]), report.left[name]
        assert re.search(f"^{name}: stays as it was: .*({reason})", str(report), re.MULTILINE)
        assert before[name] == (classes(model[name]), attributes(model[name]))
    with pytest.raises(FlagError, match=r"nothing in Encoder can run .*Encoder: Encoder is not"):
        convert(model["encoder"])
    with pytest.raises(FlagError, match=r"Linear can run.*it holds no layers of x-transformers"):
        convert(nn.Linear(2, 2))
    with pytest.raises(FlagError, match="Linear holds no decoder of xcope"):
        revert(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["cope, rotary", "t5", "absolute"])
def test_an_error_on_the_way_leaves_no_model_half_changed(name, monkeypatch):
    model = of_scheme(name)
    handle = model.attn_layers.register_forward_hook(lambda *_: 1 / 0)
    before = classes(model), attributes(model), named(model)
    for place in ("meetings", "check_wrapper", "count_cache"):
        with monkeypatch.context() as patched:
            patched.setattr(seam, place, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                convert(model)
        assert before == (classes(model), attributes(model), named(model))
    handle.remove()
    truth = of_scheme(name)(tokens())
    close(model(tokens()), truth)
    convert(model)
    before = classes(model), attributes(model), named(model)
    for place in ("restore_layers", "restore_wrapper", "count_cache"):
        with monkeypatch.context() as patched:
            patched.setattr(seam, place, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                revert(model)
        assert before == (classes(model), attributes(model), named(model))
    close(model(tokens()), truth)


def test_an_encoder_and_decoder_share_what_they_share():
    torch.manual_seed(0)
    size = {"depth": 1, "heads": HEADS, "attn_dim_head": DIM_HEAD}
    parts = {f"{part}_{flag}": v for part in ("enc", "dec") for flag, v in size.items()}
    around = {
        f"{part}_{flag}": v
        for part in ("enc", "dec")
        for flag, v in {"num_tokens": TOKENS, "max_seq_len": LENGTH}.items()
    }
    model = xt.XTransformer(
        dim=DIM, tie_token_emb=True, dec_rel_pos_bias=True, **parts, **around
    ).eval()
    truth = copy.deepcopy(model)
    report = convert(model)
    assert [*report.left] == ["encoder.attn_layers"]
    assert [*report.done] == ["decoder.net.attn_layers", "decoder.net"]
    assert model.decoder.net.token_emb is model.encoder.token_emb
    source, target = tokens(7), tokens(9)
    close(model(source, target), truth(source, target))
    texts = [one.generate(source, target[:, :1], 8, temperature=0.0) for one in (model, truth)]
    assert torch.equal(*texts)


def test_it_is_copied_pickled_compiled_and_distributed(tmp_path):
    model = built(SCHEMES["cope, alibi"], {"tie_embedding": True}).eval()
    truth = built(SCHEMES["cope, alibi"], {"tie_embedding": True}).eval()
    expected = truth(tokens()).detach()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    close(compiled(tokens()), expected)
    convert(compiled)
    assert isinstance(model, xcope.TransformerWrapper)
    close(compiled(tokens()), expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(twin(tokens()), expected)
        close_gradients(gradients(twin, tokens()), gradients(truth, tokens()))
        close(revert_of(twin)(tokens()), expected)
    if not torch.distributed.is_initialized():
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(built(SCHEMES["cope, alibi"]))
        convert(parallel)
        close_gradients(
            {n.removeprefix("module."): g for n, g in gradients(parallel, tokens()).items()},
            gradients(built(SCHEMES["cope, alibi"]), tokens()),
        )
    finally:
        torch.distributed.destroy_process_group()


def revert_of(model):
    revert(model)
    return model


def test_attention_maps_and_memories_are_those_of_x_transformers():
    model, truth = of_scheme("alibi", attn_num_mem_kv=2), of_scheme("alibi", attn_num_mem_kv=2)
    convert(model)
    maps = [one(tokens(), return_attn=True)[1] for one in (model, truth)]
    for mine, theirs in zip(*maps, strict=True):
        close(mine, theirs)
    for one in (model, truth):
        one.max_mem_len = 6
    memories = [one(tokens(), return_mems=True)[1] for one in (model, truth)]
    outs = [one(tokens(5), mems=m) for one, m in zip((model, truth), memories, strict=True)]
    close(*outs)


@pytest.mark.parametrize(
    "position",
    [
        "rotary",
        "cope_alibi",
        ["absolute", "t5"],
        "rotary_linear",
        {"layers": ["cope", "none"]},
        "sinusoidal",
    ],
    ids=str,
)
def test_a_decoder_of_xcope_becomes_one_of_x_transformers(position):
    torch.manual_seed(0)
    size = {"dim": DIM, "depth": 2, "heads": HEADS, "attn_dim_head": DIM_HEAD}
    model = xcope.AutoregressiveWrapper(
        xcope.TransformerWrapper(
            num_tokens=TOKENS,
            max_seq_len=LENGTH,
            attn_layers=xcope.Decoder(**size, position=position),
        )
    ).eval()
    expected = model.net(tokens()).detach()
    revert(model)
    assert not any(type(m).__module__.startswith("xcope") for m in model.modules())
    close(model.net(tokens()), expected)


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        ("fire", r"x-transformers has nothing like FireBias, of position 'fire': it has .*'t5'"),
        ({"heads": ["cope", "rotary"]}, "heads of one layer with different schemes"),
        (["rotary", "none"], "layers of x-transformers share their rotation"),
        ({"name": "cope", "per_head": True}, "cope_per_head=True is not known"),
        ({"name": "cope", "sep_keys": True}, "cope_sep_keys=True is not known"),
        ({"name": "rotary", "layout": "half_split"}, "layout 'half_split'"),
    ],
)
def test_what_x_transformers_lacks_is_named_and_the_model_stays(position, reason):
    size = {"dim": DIM, "depth": 2, "heads": HEADS, "attn_dim_head": DIM_HEAD}
    model = xcope.Decoder(**size, position=position)
    before = classes(model), attributes(model), named(model)
    with pytest.raises(FlagError, match=reason):
        revert(model)
    assert before == (classes(model), attributes(model), named(model))


def held_for_the_backward(model, n):
    """Bytes that a forward pass keeps for the gradients."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens(n, b=1)).square().mean().backward()
    return sum(storages.values())


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in ("per row", "projected")])
def test_training_holds_memory_that_grows_with_the_length_not_its_square(name):
    wrapper = WRAPPERS.get(name, {}) | {"max_seq_len": 448}
    model = built(SCHEMES[name], wrapper).train()
    square = 4 * HEADS * 448**2  # one layer's logits in float32
    assert held_for_the_backward(model, 448) > 2 * square
    convert(model)
    short, long = (held_for_the_backward(model, n) for n in (224, 448))
    assert long < 2.1 * short
    assert long < square
