"""Rotary against x-transformers, rotary-embedding-torch and Hugging Face's Llama."""

import pytest
import rotary_embedding_torch
import torch
from rotations import (
    GEOMETRY,
    HEADS,
    D,
    assert_depends_on_places_alone,
    llama,
    module,
    queries_and_keys,
)
from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

from xcope.errors import FlagError
from xcope.positions import Geometry, scheme


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"dim": 12, "base": 500.0}, {"base": 500.0}),
        ({"interpolation_factor": 4.0}, {"interpolation_factor": 4.0}),
        ({"base_rescale_factor": 8.0}, {"base_rescale_factor": 8.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [0, 1_000_000])
def test_as_x_transformers(ours, theirs, first):
    upstream = RotaryEmbedding(ours.get("dim", D // 2), **theirs)
    rotation = module("rotary", **ours)
    rotation.load_state_dict(upstream.state_dict(), strict=True)
    upstream.load_state_dict(rotation.state_dict(), strict=True)
    q, k = queries_and_keys(30)
    pos = torch.arange(30) + first
    angles, scale = upstream(pos)
    expected = [apply_rotary_pos_emb(t, angles, scale) for t in (q, k)]
    torch.testing.assert_close(rotation.rotate(q, k, pos, pos), tuple(expected))


@pytest.mark.parametrize("dim", [8, D])
def test_as_rotary_embedding_torch(dim):
    theirs = rotary_embedding_torch.RotaryEmbedding(dim)
    q, k = queries_and_keys(30)
    pos = torch.arange(30)
    expected = [theirs.rotate_queries_or_keys(t) for t in (q, k)]
    torch.testing.assert_close(module("rotary", dim=dim).rotate(q, k, pos, pos), tuple(expected))


def test_half_split_as_llama():
    q, k = queries_and_keys(30, kv_heads=2)
    pos = torch.arange(30)
    ours = module("rotary", dim=D, layout="half_split").rotate(q, k, pos, pos)
    torch.testing.assert_close(ours, llama(q, k, pos, rope_type="default"))


@pytest.mark.parametrize("layout", ["interleaved", "half_split"])
def test_only_the_first_channels_turn(layout):
    q, k = queries_and_keys(9)
    pos = torch.arange(9)
    part = module("rotary", dim=6, layout=layout).rotate(q, k, pos, pos)
    whole = scheme("rotary", {"dim": 6, "layout": layout}).build(
        Geometry(dim=24, heads=4, dim_head=6)
    )
    turned = whole.rotate(q[..., :6], k[..., :6], pos, pos)
    for ours, x, of_the_first in zip(part, (q, k), turned, strict=True):
        torch.testing.assert_close(ours[..., :6], of_the_first)
        assert torch.equal(ours[..., 6:], x[..., 6:])


@pytest.mark.parametrize(
    ("said", "channels"),
    [("whole", D), ("half", D // 2), ("quarter", D // 4), (1.0, D), (0.4, 6), (None, D // 2)],
)
def test_how_much_of_a_head_turns_may_be_said_in_words_or_as_a_share(said, channels):
    assert len(module("rotary", dim=said).inv_freq) == channels // 2


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_has_the_angles_of_float32(dtype):
    q, k = queries_and_keys(9, dtype=dtype)
    pos = torch.arange(9) + 3000
    exact = module("rotary").rotate(q.float(), k.float(), pos, pos)
    cast = module("rotary").to(dtype)
    assert cast.inv_freq.dtype == torch.float32
    for ours, expected in zip(cast.rotate(q, k, pos, pos), exact, strict=True):
        assert torch.equal(ours, expected.to(dtype))
    assert module("rotary").double().inv_freq.dtype == torch.float64


def test_gradcheck():
    rotation = module("rotary").double()
    q, k = (t.requires_grad_() for t in queries_and_keys(3, kv_heads=1, dtype=torch.float64))
    pos = torch.tensor([[0, 1, 2], [4, 4, 9]])
    assert torch.autograd.gradcheck(lambda q, k: rotation.rotate(q, k, pos, pos), (q, k))


def test_cos_and_sin_are_computed_once_where_q_and_k_stand_at_the_same_places(monkeypatch):
    rotation, calls = module("rotary"), []
    turns = rotation.turns
    monkeypatch.setattr(rotation, "turns", lambda *a: calls.append(a) or turns(*a))
    q, k = queries_and_keys(4)
    pos = torch.arange(4)
    rotation.rotate(q, k, pos, pos)
    assert len(calls) == 1
    rotation.rotate(q[:, :, -1:], k, pos[-1:], pos)
    assert len(calls) == 3


def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    rotation = module("rotary")
    whole = torch.compile(rotation.rotate, fullgraph=True, backend="aot_eager")
    q, k = queries_and_keys(6)
    pos = torch.arange(6)
    for given in ((q, k, pos, pos), (q[:, :, -2:], k, pos[-2:], pos)):
        torch.testing.assert_close(whole(*given), rotation.rotate(*given))


def test_it_is_built_without_memory_where_models_are_only_checked():
    with torch.device("meta"):
        assert module("rotary").inv_freq.is_meta


@pytest.mark.parametrize(
    ("options", "flag", "message"),
    [
        (
            {"dim": 5},
            "rotary_dim",
            "rotary_dim=5 is not allowed: an even number from 2 to dim_head",
        ),
        ({"dim": D + 2}, "rotary_dim", f"to dim_head={D}"),
        ({"dim": 0}, "rotary_dim", "from 2"),
        ({"dim": 1}, "rotary_dim", "or 'whole', 'half' and 'quarter'"),
        ({"dim": "hole"}, "rotary_dim", "choose among 'whole', .*did you mean 'whole'"),
        ({"dim": 1.5}, "rotary_dim", "a share of the head is above 0 and at most 1.0"),
        ({"dim": 0.2}, "rotary_dim", "that is 3 of 16 channels: an even number"),
        ({"dim": True}, "rotary_dim", "not of type int . float . str . None"),
        ({"base": 1.0}, "rotary_base", "it must be above 1"),
        ({"layout": "halfsplit"}, "rotary_layout", "did you mean 'half_split'"),
        ({"layout": "llama"}, "rotary_layout", "choose among 'interleaved' and 'half_split'"),
        ({"layout": 2}, "rotary_layout", "not of type str"),
        ({"interpolation_factor": 0.5}, "rotary_interpolation_factor", "at least 1"),
        ({"base_rescale_factor": 0.0}, "rotary_base_rescale_factor", "above 0"),
        ({"dim": 2, "base_rescale_factor": 2.0}, "rotary_base_rescale_factor", "more than 2"),
        ({"random_max": 0}, "rotary_random_max", "1 or more"),
    ],
    ids=str,
)
def test_errors(options, flag, message):
    with pytest.raises(FlagError, match=message) as caught:
        module("rotary", **options)
    assert caught.value.flag == flag


@pytest.mark.parametrize("name", ["rotary", "rotary_ntk"])
def test_a_head_whose_half_cannot_turn_in_pairs(name):
    with pytest.raises(
        FlagError, match=f"position '{name}'.*a multiple of 4.*set {name}_dim"
    ) as caught:
        scheme(name).build(Geometry(dim=HEADS * 6, heads=HEADS, dim_head=6))
    assert caught.value.flag == "dim_head"
    with pytest.raises(FlagError, match="a multiple of 4 from 8 on"):
        scheme("rotary_ntk").build(Geometry(dim=HEADS * 4, heads=HEADS, dim_head=4))
    assert scheme("rotary").build(GEOMETRY).inv_freq.shape == (D // 4,)
