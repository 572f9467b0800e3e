"""Proportional rotary against the frequencies of Hugging Face."""

import pytest
import torch
from rotations import D, assert_depends_on_places_alone, module, queries_and_keys
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from xcope.errors import FlagError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partial_rotary_factor": 0.25, "base": 1e6},
        {"partial_rotary_factor": 0.4, "factor": 8.0},
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": 0.0},
    ],
    ids=str,
)
def test_as_hugging_face(options):
    q, k = queries_and_keys(40, kv_heads=2)
    pos = torch.arange(40)
    given = {"partial_rotary_factor": 0.75, "base": 10000.0} | options
    config = LlamaConfig(
        hidden_size=4 * D,
        num_attention_heads=4,
        head_dim=D,
        rope_parameters={
            "rope_type": "proportional",
            "rope_theta": given.pop("base"),
            **given,
        },
    )
    inv_freq, scaling = ROPE_INIT_FUNCTIONS["proportional"](config, torch.device("cpu"))
    angles = (pos[:, None] * inv_freq).repeat(1, 2)[None]
    expected = apply_rotary_pos_emb(q, k, angles.cos() * scaling, angles.sin() * scaling)
    ours = module("rotary_proportional", **options).rotate(q, k, pos, pos)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_slow_channels_are_untouched():
    q, k = queries_and_keys(9)
    pos = torch.arange(9) + 5
    rotation = module("rotary_proportional", partial_rotary_factor=0.5, layout="interleaved")
    turned, _ = rotation.rotate(q, k, pos, pos)
    assert torch.equal(turned[..., D // 2 :], q[..., D // 2 :])
    assert (turned[..., : D // 2] - q[..., : D // 2]).abs().amin((0, 1, 2)).gt(0).all()


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary_proportional"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5 .* from 0 to 1"),
        ({"factor": 0.5}, "rotary_proportional_factor=0.5 is not allowed: at least 1"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("rotary_proportional", **options)
