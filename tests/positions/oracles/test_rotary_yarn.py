"""YaRN against Hugging Face's Llama."""

import pytest
import torch
from rotations import D, assert_depends_on_places_alone, llama, module, queries_and_keys

from xcope.errors import FlagError
from xcope.positions.rotary_yarn import yarn_scale

TRAINED = 64


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1.0},
        {"factor": 2.0},
        {"factor": 8.0},
        {"factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0},
        {"factor": 4.0, "attention_factor": 1.5},
        {"factor": 8.0, "truncate": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [7, TRAINED, 200])
def test_as_llama(n, options):
    q, k = queries_and_keys(n, kv_heads=2)
    pos = torch.arange(n)
    ours = module("rotary_yarn", dim=D, layout="half_split", trained_len=TRAINED, **options)
    theirs = {"rope_type": "yarn", "original_max_position_embeddings": TRAINED, **options}
    expected = llama(q, k, pos, int(TRAINED * options["factor"]), **theirs)
    torch.testing.assert_close(ours.rotate(q, k, pos, pos), expected, rtol=1e-4, atol=1e-4)


def test_pairs_between_turn_between():
    scale = yarn_scale(64, 10000.0, 4.0, 2048, 32.0, 1.0)
    assert scale[0] == 1
    assert scale[-1] == 0.25
    assert ((scale > 0.25) & (scale < 1)).any()
    assert (scale.diff() <= 0).all()


@pytest.mark.parametrize(("trained_len", "scale"), [(10**12, 1.0), (2, 0.25)])
def test_where_all_pairs_are_fast_or_all_but_the_first_slow(trained_len, scale):
    ours = yarn_scale(16, 10000.0, 4.0, trained_len, 32.0, 1.0)
    torch.testing.assert_close(ours[1:], torch.full((7,), scale))


def test_channels_that_do_not_turn_are_not_multiplied():
    q, k = queries_and_keys(5)
    pos = torch.arange(5)
    ours = module("rotary_yarn", trained_len=TRAINED, attention_factor=3.0)
    turned = ours.rotate(q, k, pos, pos)[0]
    torch.testing.assert_close(turned[:, :, 0, : D // 2], 3 * q[:, :, 0, : D // 2])
    assert torch.equal(turned[..., D // 2 :], q[..., D // 2 :])


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary_yarn", trained_len=TRAINED))


def test_gradcheck_with_the_attention_factor():
    rotation = module("rotary_yarn", trained_len=TRAINED, factor=8.0).double()
    q, k = (t.requires_grad_() for t in queries_and_keys(2, kv_heads=1, dtype=torch.float64))
    pos = torch.tensor([3, 70])
    assert torch.autograd.gradcheck(lambda q, k: rotation.rotate(q, k, pos, pos), (q, k))


def test_a_checkpoint_of_plain_rotary_loads_and_stays_scaled():
    ours = module("rotary_yarn", trained_len=TRAINED)
    before = ours.frequencies(torch.arange(3)).clone()
    ours.load_state_dict(module("rotary").state_dict(), strict=True)
    assert torch.equal(ours.frequencies(torch.arange(3)), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rotary_yarn_trained_len=None is not allowed: set it to the length"),
        ({"trained_len": 9, "factor": 0.5}, "rotary_yarn_factor=0.5 is not allowed: at least 1"),
        ({"trained_len": 9, "beta_slow": 0.0}, "rotary_yarn_beta_slow=0.0 .* above 0"),
        ({"trained_len": 9, "beta_fast": 1.0}, "rotary_yarn_beta_fast=1.0 .*_beta_slow=1.0"),
        (
            {"trained_len": 9, "attention_factor": 0.0},
            "rotary_yarn_attention_factor=0.0 .* above 0",
        ),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("rotary_yarn", **options)
