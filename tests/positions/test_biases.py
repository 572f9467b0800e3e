"""Every scheme of the bias slot: its vectors say what its definition says."""

import pytest
import torch

import xcope
from xcope.errors import FlagError
from xcope.ops.biased import biased_attention
from xcope.ops.biased.reference import dense as written_out
from xcope.positions import Geometry, IndexedScheme, Slot, scheme
from xcope.positions.distances import tabulated
from xcope.positions.fire import piecewise

GEOMETRY = Geometry(dim=32, heads=3, dim_head=16)


def terms_of(module, q_pos, k_pos):
    """With the tightest span."""
    largest = (q_pos.amax(-1) - k_pos.amin(-1)).max()
    return module.terms(q_pos, k_pos, int(largest) + 1)


BIASES = {
    "alibi": {},
    "alibi-2": {"num_heads": 2},
    "t5": {},
    "t5-small": {"num_buckets": 5, "max_distance": 9},
    "kerple": {},
    "kerple-power": {"kind": "power"},
    "fire": {"init_l": 8.0},
    "fire-far": {"mlp_width": 5},
    "sandwich": {},
    "sandwich-6": {"dim": 6, "base": 50.0},
    "dynamic": {},
    "dynamic-log": {"log_distance": True, "depth": 1},
    "dynamic-norm": {"norm": True, "depth": 3},
    "dynamic-relu": {"activation": "relu"},
    "bam": {},
    "bam-mu": {"train_mu": True, "mu_init": -0.7, "beta_init": 0.8},
}

STARTS = torch.tensor([[0], [3], [7]])
GAPS = torch.tensor([0, 1, 4, 9, 10, 30, 113, 300, 301])
KEYS = {
    "consecutive": torch.arange(9),
    "from 1000": torch.arange(1000, 1009),
    "gaps": GAPS,
    "repeated": torch.tensor([0, 0, 1, 1, 1, 2, 5, 5, 6]),
    "memories": torch.arange(-4, 5),
    "left-padded": torch.arange(9) - STARTS,
    "gaps in each row": GAPS * torch.tensor([[1], [2], [1]]) + STARTS,
}


def built(case, dtype=torch.float64):
    """The module with weights away from their beginnings, so that nothing cancels by chance."""
    module = scheme(case.split("-")[0], BIASES[case]).build(GEOMETRY).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def seen(q_pos, k_pos):
    return (q_pos[..., :, None] >= k_pos[..., None, :]).unsqueeze(-3)


def test_every_scheme_of_the_slot_is_here():
    slot = {name for name, kind in xcope.schemes().items() if kind.slot is Slot.BIAS}
    assert {case.split("-")[0] for case in BIASES} == slot
    for name in slot:
        assert issubclass(xcope.schemes()[name], IndexedScheme)


@pytest.mark.parametrize("queries", [9, 3, 1])
@pytest.mark.parametrize("k_pos", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("case", BIASES)
def test_vectors_agree_with_the_definition(case, k_pos, queries):
    module, q_pos = built(case), k_pos[..., -queries:]
    mask = seen(q_pos, k_pos)
    dense, tiled = module.dense(q_pos, k_pos), written_out(terms_of(module, q_pos, k_pos))
    assert dense.shape == tiled.shape == (*k_pos.shape[:-1], 3, queries, 9)
    assert dense.isfinite().all()
    assert tiled.isfinite().all()
    torch.testing.assert_close(dense * mask, tiled * mask, atol=1e-10, rtol=1e-10)
    weight = torch.randn(dense.shape, dtype=torch.float64) * mask
    parameters = list(module.parameters())
    if parameters:
        for a, b in zip(
            torch.autograd.grad((dense * weight).sum(), parameters),
            torch.autograd.grad((tiled * weight).sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("places", ["consecutive", "left-padded", "gaps in each row"])
@pytest.mark.parametrize("case", BIASES)
def test_tiled_attention_with_the_vectors(case, places):
    module, k_pos = built(case), KEYS[places]
    q_pos = k_pos[..., -5:]
    q, k, v = (torch.randn(3, 3, n, 8, dtype=torch.float64) for n in (5, 9, 9))
    got = biased_attention(q, k, v, terms_of(module, q_pos, k_pos), scale=0.3, backend="tiled")
    logits = 0.3 * q @ k.mT + module.dense(q_pos, k_pos)
    causal = torch.ones(5, 9, dtype=torch.bool).tril(4)
    expected = logits.masked_fill(~causal, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    parameters, weight = list(module.parameters()), torch.randn_like(got)
    if parameters:
        for a, b in zip(
            torch.autograd.grad((got * weight).sum(), parameters),
            torch.autograd.grad((expected * weight).sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("k_pos", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("case", BIASES)
def test_a_query_alone_gets_what_it_gets_among_others(case, k_pos):
    module = built(case)
    for bias in (module.dense, lambda q, k: written_out(terms_of(module, q, k))):
        one, all_ = bias(k_pos[..., -1:], k_pos), bias(k_pos, k_pos)[..., -1:, :]
        torch.testing.assert_close(one, all_, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("case", BIASES)
def test_in_float32(case):
    module = built(case, torch.float32)
    q_pos = k_pos = torch.arange(700)
    terms = terms_of(module, q_pos, k_pos)
    mask = seen(q_pos, k_pos)
    dense, tiled = module.dense(q_pos, k_pos), written_out(terms)
    assert dense.dtype == tiled.dtype == torch.float32
    torch.testing.assert_close(dense * mask, tiled * mask, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", BIASES)
def test_autocast_does_not_round_the_bias(case):
    module, pos = built(case, torch.float32), KEYS["gaps"]
    expected = module.dense(pos, pos), written_out(terms_of(module, pos, pos))
    with torch.autocast("cpu", torch.bfloat16):
        got = module.dense(pos, pos), written_out(terms_of(module, pos, pos))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("case", ["alibi", "kerple", "kerple-power", "fire", "sandwich"])
def test_weights_in_bfloat16_still_tell_large_distances_apart(case):
    module = built(case, torch.bfloat16)
    q_pos, k_pos = torch.tensor([2003]), torch.arange(2004)
    for bias in (module.dense(q_pos, k_pos), written_out(terms_of(module, q_pos, k_pos))):
        assert bias.dtype == torch.float32
        assert (bias[..., 1:6].diff(dim=-1) != 0).all()


def test_tabulated_is_the_curve():
    distance = torch.tensor([[4, -3], [0, 4]])
    expected = torch.stack((distance.double() ** 3, distance.double()), dim=-1)
    got = tabulated(lambda d: torch.stack((d.double() ** 3, d.double()), dim=-1), distance)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


NETWORKS = {
    "one unit": ([1.0], [-0.5]),
    "no slopes": ([0.0, 0.0, 0.0], [1.0, -1.0, 0.0]),
    "equal knots": ([2.0, -2.0, 1.0, -1.0], [-1.0, 1.0, -0.5, 0.5]),
    "knots at distance 0": ([1.0, -1.0, 0.0], [0.0, 0.0, 2.0]),
    "knots beyond all numbers": ([1e-320, -1e-320, 3.0], [1.0, 1.0, -1.0]),
    "units on both sides": ([0.7, -1.3, 2.1, -0.2, 1.9], [0.3, 1.1, -1.7, 0.4, -0.1]),
}


@pytest.mark.parametrize(("w1", "b1"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_with_one_hidden_layer_is_piecewise_linear(w1, b1):
    w1, b1 = (torch.tensor(p, dtype=torch.float64) for p in (w1, b1))
    w2, b2 = torch.randn(2, len(w1)).double(), torch.randn(2).double()
    t = torch.linspace(-3, 3, 241, dtype=torch.float64)
    slope, offset, knots = piecewise(w1, b1, w2, b2)
    assert slope.shape == offset.shape == (2, len(w1) + 1)
    assert torch.equal(knots, knots.sort().values)
    segment = torch.searchsorted(knots, t, right=True)
    expected = (w1 * t[:, None] + b1).relu() @ w2.T + b2
    got = (slope[:, segment] * t + offset[:, segment]).T
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("position", "options", "allowed"),
    [
        ("t5", {"num_buckets": 1}, "at least 2"),
        ("t5", {"num_buckets": 64, "max_distance": 63}, "at least num_buckets=64"),
        ("kerple", {"kind": "cubic"}, "'log' and 'power'"),
        ("fire", {"mlp_width": 0}, "at least 1"),
        ("fire", {"init_c": 0}, "must not be 0"),
        ("fire", {"init_l": -1.0}, "above 0"),
        ("sandwich", {"dim": 7}, "even"),
        ("sandwich", {"base": 1.0}, "above 1"),
        ("dynamic", {"depth": 0}, "at least 1"),
        ("alibi", {"num_heads": 4}, "1 to heads=3"),
        ("forgetting", {"post_log_scale": 0.0}, "above 0"),
    ],
)
def test_options_that_are_not_allowed_name_their_flag(position, options, allowed):
    with pytest.raises(FlagError, match=allowed) as caught:
        scheme(position, options).build(GEOMETRY)
    assert caught.value.flag == f"{position}_{list(options)[-1]}"


def test_a_decoder_too_narrow_for_the_dynamic_network():
    with pytest.raises(FlagError, match="dim=3") as caught:
        scheme("dynamic").build(Geometry(dim=3, heads=1, dim_head=3))
    assert caught.value.flag == "dim"
