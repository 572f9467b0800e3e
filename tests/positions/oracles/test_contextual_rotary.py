"""Contextual rotary against the papers' formulas in plain loops."""

import math
from itertools import pairwise

import pytest
import torch
from rotations import HEADS, D, module, queries_and_keys

import xcope
from xcope.errors import FlagError
from xcope.inspect import trace
from xcope.modules import seam
from xcope.ops import rotate as rotation_op
from xcope.ops.rotate import rotate_by, rotate_in_operations
from xcope.positions import Geometry

PAPERS = {
    "grape-m": {
        "places": "softplus",
        "per": "layer",
        "exclusive": True,
        "learned_freq": True,
        "init_step": 0.3,
        "init_spread": 0.5,
        "dim": "whole",
        "layout": "half_split",
    },
    "selective rope": {
        "places": "linear",
        "per": "pair",
        "rank": 3,
        "conv": 4,
        "init_step": 0.0,
        "init_spread": 1.0,
    },
    "mapformer": {
        "places": "linear",
        "per": "pair",
        "rank": 2,
        "learned_freq": True,
        "init_step": 0.0,
        "init_spread": 1.0,
    },
    "repo": {"places": "repo"},
    "gates": {"places": "sigmoid", "init_spread": 2.0},
}


def awake(rotation):
    """What begins the same for all gets numbers of its own."""
    with torch.no_grad():
        for name, parameter in rotation.named_parameters():
            if name in ("mixed", "log_freq") or name.startswith(("gate", "content", "to_steps")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return rotation


def linear(weight, x):
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()]


def steps_in_loops(rotation, options, x):
    """Of each token of x (n dim): the list of its steps, or places."""
    found = []
    for read in x.tolist():
        token = read
        bias = rotation.to_steps.bias.tolist()
        if options["places"] == "repo":
            gate = linear(rotation.gate.weight, token)
            content = linear(rotation.content.weight, token)
            token = [g / (1 + math.exp(-g)) * c for g, c in zip(gate, content, strict=True)]
        elif "rank" in options:
            token = linear(rotation.low_rank.weight, token)
        a = [s + b for s, b in zip(linear(rotation.to_steps.weight, token), bias, strict=True)]
        if options["places"] == "softplus":
            a = [math.log(1 + math.exp(v)) for v in a]
        if options["places"] == "sigmoid":
            a = [1 / (1 + math.exp(-v)) for v in a]
        found.append(a)
    return found


def places_in_loops(rotation, options, steps):
    """From the steps of a document's tokens to where each stands."""
    if options["places"] == "repo":
        return steps
    if "conv" in options:
        weights = rotation.mixed.tolist()
        steps = [
            [
                sum(w[back] * steps[t - back][c] for back in range(min(t + 1, options["conv"])))
                for c, w in enumerate(weights)
            ]
            for t in range(len(steps))
        ]
    at, found = [0.0] * len(steps[0]), []
    for step in steps:
        after = [p + s for p, s in zip(at, step, strict=True)]
        found.append(at if options.get("exclusive") else after)
        at = after
    return found


def turned_in_loops(x, places, omegas, half_split):
    """x (h n d) turned by places, for each token a list with one of each head's pairs."""
    out, dim = x.clone(), 2 * len(omegas)
    for h in range(x.shape[0]):
        for i in range(x.shape[1]):
            for m, omega in enumerate(omegas):
                first, second = (m, m + dim // 2) if half_split else (2 * m, 2 * m + 1)
                own = places[i]
                which = {1: 0, HEADS: h}.get(len(own), h * len(omegas) + m)
                c, s = math.cos(own[which] * omega), math.sin(own[which] * omega)
                a, b = x[h, i, first].item(), x[h, i, second].item()
                out[h, i, first], out[h, i, second] = a * c - b * s, a * s + b * c
    return out


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("documents", [None, [0, 2, 2, 9]])
def test_the_formula(paper, documents):
    options = PAPERS[paper]
    torch.manual_seed(0)
    rotation = awake(module("contextual_rotary", **options))
    x, (q, k) = torch.randn(1, 9, HEADS * D), (t[:1] for t in queries_and_keys(9))
    cu_seqlens = None if documents is None else torch.tensor(documents)
    places = rotation.places(rotation.remember(x), cu_seqlens)
    steps = steps_in_loops(rotation, options, x[0])
    expected = []
    for first, last in pairwise(documents or [0, 9]):
        expected += places_in_loops(rotation, options, steps[first:last]) if last > first else []
    if options.get("learned_freq"):
        omegas = rotation.log_freq.exp().tolist()
    else:
        dim = D if options.get("dim") == "whole" else D // 2
        omegas = [10000.0 ** (-2 * m / dim) for m in range(dim // 2)]
    half_split = options.get("layout") == "half_split"
    for ours, given in zip(rotation.rotate(q, k, places, places), (q, k), strict=True):
        loops = turned_in_loops(given[0], expected, omegas, half_split)
        torch.testing.assert_close(ours[0], loops, rtol=1e-4, atol=1e-4)


# -- in a decoder ---------------------------------------------------------------------------------

SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}


def decoder_of(options, **flags):
    torch.manual_seed(0)
    position = {"name": "contextual_rotary", **options}
    layers = xcope.Decoder(**SIZE | flags, position=position).eval()
    for attention in seam.self_attentions(layers):
        awake(attention.attend.rotation)
    return layers


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"exclusive": True}, {"per": "layer"}, {"per": "pair"}])
@pytest.mark.parametrize("flags", [{}, {"attn_kv_heads": 2}], ids=str)
def test_with_steps_of_1_it_is_plain_rotary(options, flags):
    x, found = torch.randn(2, 12, 32), []
    for position in ("rotary", {"name": "contextual_rotary", **options}):
        torch.manual_seed(0)
        found.append(xcope.Decoder(**SIZE | flags, position=position).eval()(x))
    close(*found)


@pytest.mark.parametrize("paper", PAPERS)
def test_beside_a_cache_padded_or_packed_every_text_is_what_it_is_alone(paper):
    decoder = decoder_of(PAPERS[paper], attn_kv_heads=2)
    x = torch.randn(2, 9, 32)
    whole = decoder(x)
    _, cache = decoder(x[:, :5], return_hiddens=True)
    out, cache = decoder(x[:, 5:8], cache=cache, cache_age=3, return_hiddens=True)
    close(out, whole[:, 5:8])
    close(decoder(x[:, 8:], cache=cache, cache_age=1), whole[:, 8:])

    padded = torch.cat((torch.randn(1, 4, 32), x[:1, :5]), dim=1)
    rows = torch.cat((padded, x[1:]))
    close(decoder(rows, seq_start_pos=torch.tensor([4, 0]))[0, 4:], decoder(x[:1, :5])[0])

    packed = decoder(torch.cat((x[:1, :5], x[1:]), dim=1), cu_seqlens=torch.tensor([0, 5, 14]))
    close(packed[0, :5], whole[0, :5])
    close(packed[0, 5:], whole[1])


@pytest.mark.parametrize("per", ["head", "layer", "pair"])
@pytest.mark.parametrize(
    ("beside", "flags"),
    [
        (["cope"], {}),
        ([{"name": "cope", "sep_keys": True}, "alibi"], {"attn_kv_heads": 2}),
        (["forgetting"], {"attn_kv_heads": 2}),
        ([], {"rotate_num_heads": 2}),
        ([], {"attn_num_mem_kv": 2, "attn_kv_heads": 1}),
    ],
    ids=str,
)
def test_tiles_equal_all_logits_held_beside_what_else_stands_at_the_heads(per, beside, flags):
    torch.manual_seed(0)
    own = {"name": "contextual_rotary", "per": per, "init_spread": 1.0}
    decoder = xcope.Decoder(**SIZE | flags, position=[own, *beside]).eval()
    x, found = torch.randn(1, 11, 32), []
    parameters = list(decoder.parameters())
    for kept in (False, True):
        if kept:
            with seam.logits_kept(decoder):
                out = decoder(x)
        else:
            out = decoder(x)
        grads = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        found.append([out, *(g for g in grads if g is not None)])
    assert len(found[0]) > len(parameters) - 8
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-3)


def test_half_of_the_heads_may_have_it():
    position = {"heads": [{"name": "contextual_rotary", "init_spread": 1.0}, "alibi"]}
    torch.manual_seed(0)
    decoder = xcope.Decoder(**SIZE, attn_kv_heads=2, position=position).eval()
    x = torch.randn(1, 8, 32)
    whole = decoder(x)
    _, cache = decoder(x[:, :6], return_hiddens=True)
    close(decoder(x[:, 6:], cache=cache, cache_age=2), whole[:, 6:])


@pytest.mark.parametrize("half_split", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("c", "with_freq"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("at_once", [1, 2**18])
def test_gradients_of_places_and_frequencies(
    half_split, groups, c, with_freq, at_once, monkeypatch
):
    monkeypatch.setattr(rotation_op, "ANGLES_AT_ONCE", at_once)
    x = torch.randn(2, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    places = torch.randn(2, groups, 3, c, dtype=torch.float64, requires_grad=True)
    freq = torch.rand(2, dtype=torch.float64, requires_grad=True) if with_freq else None

    def turned(x, places, freq=None):
        return rotate_by(x, places, freq, half_split=half_split)

    given = (x, places, freq) if with_freq else (x, places)
    assert torch.autograd.gradcheck(turned, given)
    assert torch.autograd.gradgradcheck(turned, given)
    angles = places * freq if with_freq else places
    plain = rotate_in_operations(x, angles.cos(), angles.sin(), half_split=half_split)
    close(turned(*given), plain)


def test_a_step_counts_after_a_million_others():
    rotation = module("contextual_rotary", dim="whole")
    steps = torch.rand(1, HEADS, 2**20, 1)
    far = rotation.places(steps, None)[:, :, -3:]
    near = rotation.places(steps[:, :, -3:], None)
    q, k = queries_and_keys(3)
    logits = []
    for places in (far, near):
        turned_q, turned_k = rotation.rotate(q, k, places, places)
        logits.append(turned_q @ turned_k.mT)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_narrow_weights_begin_with_steps_of_1_too():
    rotation = module("contextual_rotary").bfloat16()
    steps = rotation.remember(torch.randn(1, 5, HEADS * D, dtype=torch.bfloat16))
    assert steps.dtype == torch.float32
    torch.testing.assert_close(steps, torch.ones_like(steps), rtol=3e-3, atol=0)


def test_a_trace_shows_the_steps_between_two_tokens():
    torch.manual_seed(0)
    own = {"name": "contextual_rotary", "init_spread": 1.0}
    layers = xcope.Decoder(**SIZE, position={"heads": [own, "alibi"]})
    model = xcope.TransformerWrapper(num_tokens=20, max_seq_len=32, attn_layers=layers).eval()
    found = trace(model, torch.randint(20, (1, 7))).layers[1]
    gates, positions = found.gates[0, 0], found.positions[0, 0]
    assert (gates[-1] > 0).all()
    for i in range(7):
        for j in range(i):
            between = sum(gates[-1, t].item() for t in range(j + 1, i + 1))
            assert positions[i, j].item() == pytest.approx(between, rel=1e-4)
    assert found.gates[0, 2].isnan().all()


def test_every_layer_has_steps_of_its_own():
    layers = decoder_of({})
    names = [name for name, _ in layers.named_parameters() if "rotation" in name]
    assert len(names) == 2 * 2
    assert {name.partition(".attend.")[2] for name in names} == {
        "rotation.to_steps.weight",
        "rotation.to_steps.bias",
    }


def test_the_authors_start_of_grape_m():
    kind = type(xcope.schemes()["contextual_rotary"]())
    rotation = kind(**kind.authors).build(Geometry(dim=512, heads=8, dim_head=64))
    steps = rotation.remember(torch.randn(1, 4000, 512))
    assert steps.shape == (1, 1, 4000, 1)
    assert steps.median().item() == pytest.approx(0.001, rel=0.1)
    assert steps.log().std().item() == pytest.approx(0.5, rel=0.1)


def test_context_has_no_places_from_content():
    decoder = xcope.Decoder(**SIZE | {"depth": 1}, position="contextual_rotary", cross_attend=True)
    x, context = torch.randn(1, 5, 32), torch.randn(1, 6, 32)
    assert decoder(x, context=context).shape == x.shape
    with pytest.raises(FlagError, match="context_pos"):
        decoder(x, context=context, context_pos=torch.arange(6))


@pytest.mark.parametrize(
    ("options", "flag", "message"),
    [
        ({"places": "softplu"}, "places", "did you mean 'softplus'"),
        ({"per": "heads"}, "per", "did you mean 'head'"),
        ({"rank": 0}, "rank", "1 or more"),
        ({"conv": 0}, "conv", "1 or more"),
        ({"init_step": 0.0}, "init_step", "softplus is above 0"),
        ({"places": "sigmoid", "init_step": 1.0}, "init_step", "between 0 and 1"),
        ({"init_spread": -1.0}, "init_spread", "not be below 0"),
        ({"places": "repo", "conv": 4}, "conv", "sums no steps"),
        ({"random_max": 9}, "random_max", "has no option 'random_max'"),
        ({"dim": 3}, "dim", "an even number"),
    ],
    ids=str,
)
def test_errors(options, flag, message):
    with pytest.raises(FlagError, match=message) as caught:
        module("contextual_rotary", **options)
    assert caught.value.flag == f"contextual_rotary_{flag}"
