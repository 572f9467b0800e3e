"""xPos against x-transformers, and its numbers in range where x-transformers' are not."""

import pytest
import torch
from rotations import (
    D,
    assert_depends_on_places_alone,
    logits,
    module,
    queries_and_keys,
)
from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

from xcope.errors import FlagError


def upstream_logits(upstream, q, k, pos):
    angles, scale = upstream(pos)
    return apply_rotary_pos_emb(q, angles, scale) @ apply_rotary_pos_emb(k, angles, scale**-1).mT


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"dim": 12, "scale_base": 40.0}, {"scale_base": 40}),
        ({"interpolation_factor": 4.0}, {"interpolation_factor": 4.0}),
        ({"base_rescale_factor": 8.0}, {"base_rescale_factor": 8.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("per_row", [False, True])
def test_as_x_transformers(ours, theirs, per_row):
    upstream = RotaryEmbedding(ours.get("dim", D // 2), use_xpos=True, **theirs)
    rotation = module("xpos", **ours)
    rotation.load_state_dict(upstream.state_dict(), strict=True)
    upstream.load_state_dict(rotation.state_dict(), strict=True)
    q, k = queries_and_keys(31)
    pos = torch.arange(31)
    pos = torch.stack([pos - 4, pos]) if per_row else pos
    expected = upstream_logits(upstream, q, k, pos)
    torch.testing.assert_close(logits(rotation, q, k, pos, pos), expected, rtol=1e-4, atol=1e-4)


def test_the_formula():
    q, k = torch.zeros(1, 1, 6, D), torch.zeros(1, 1, 6, D)
    q[..., 2], k[..., 2] = 1, 1
    pos = torch.arange(6)
    ours = logits(module("xpos", dim=8, scale_base=7.0), q, k, pos, pos)[0, 0]
    zeta, omega = ((2 / 8 + 0.4) / 1.4) ** (1 / 7), 10000 ** (-2 / 8)
    distance = (pos[:, None] - pos).float()
    torch.testing.assert_close(ours, zeta**distance * (omega * distance).cos())


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("xpos", scale_base=50.0))


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(32_000, torch.float32), (32_000, torch.bfloat16), (5_800, torch.float16)],
    ids=str,
)
def test_long_inputs_decay_with_the_distance_and_stay_finite(n, dtype):
    rotation = module("xpos").to(dtype)
    q, k = torch.ones(1, 1, n, D, dtype=dtype), torch.ones(1, 1, n, D, dtype=dtype)
    pos = torch.arange(n)
    q, k = (t.double() for t in rotation.rotate(q, k, pos, pos))
    assert q.isfinite().all()
    assert k.isfinite().all()
    decay = (0.4 / 1.4) ** (1 / 512)
    for i in (40, n // 2, n - 1):
        for distance in (0, 40):
            got = (q[0, 0, i, :2] * k[0, 0, i - distance, :2]).sum()
            turned = torch.tensor(float(distance), dtype=torch.float64).cos()
            expected = 2 * decay**distance * turned
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_keys_behind_a_far_query_are_finite_before_they_are_masked():
    q, k = queries_and_keys(2)
    pos = torch.tensor([0, 10_000_000])
    rows = logits(module("xpos"), q, k, pos, pos)
    assert rows.isfinite().all()


def test_decoding_at_a_far_place_has_no_factor_above_1():
    rotation = module("xpos", dim=D)
    pos = torch.arange(200_000)
    q, k = torch.ones(1, 1, 1, D), torch.ones(1, 1, len(pos), D)
    q, k = rotation.rotate(q, k, pos[-1:], pos)
    assert q.abs().max() < 1.5
    assert k.abs().max() < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_padding_is_finite_and_moves_nothing(dtype):
    rotation = module("xpos", scale_base=4.0)
    q, k = queries_and_keys(20, dtype=dtype)
    padded = torch.arange(20) - 1_000_000
    padded[10:] = torch.arange(10)
    pos = torch.stack([padded, torch.arange(20)])
    turned = rotation.rotate(q, k, pos, pos)
    assert all(t.isfinite().all() and t.dtype == dtype for t in turned)
    alone = logits(rotation, q[:1, :, 10:], k[:1, :, 10:], pos[0, 10:], pos[0, 10:])
    together = (turned[0] @ turned[1].mT)[:1, :, 10:, 10:]
    torch.testing.assert_close(together, alone)


def test_gradcheck():
    rotation = module("xpos", scale_base=5.0).double()
    q, k = (t.requires_grad_() for t in queries_and_keys(3, kv_heads=1, dtype=torch.float64))
    pos = torch.tensor([[0, 1, 2], [4, 4, 9]])
    assert torch.autograd.gradcheck(lambda q, k: rotation.rotate(q, k, pos, pos), (q, k))


def test_a_cast_model_keeps_its_buffers_in_float32():
    rotation = module("xpos").bfloat16()
    assert rotation.scale.dtype == rotation.inv_freq.dtype == torch.float32


def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    rotation = module("xpos")
    whole = torch.compile(rotation.rotate, fullgraph=True, backend="aot_eager")
    q, k = queries_and_keys(6)
    pos = torch.arange(6)
    torch.testing.assert_close(whole(q, k, pos, pos), rotation.rotate(q, k, pos, pos))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_base": 0.0}, "xpos_scale_base=0.0 is not allowed: it must be above 0"),
        ({"layout": "interleave"}, "did you mean 'interleaved'"),
        ({"dim": 3}, "xpos_dim=3 is not allowed"),
        ({"interpolation_factor": 0.5}, "xpos_interpolation_factor=0.5 is not allowed"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("xpos", **options)
