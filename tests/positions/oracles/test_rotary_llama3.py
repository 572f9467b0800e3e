"""Llama 3's scaling against Hugging Face's Llama."""

import json
import math

import pytest
import torch
from rotations import D, assert_depends_on_places_alone, llama, module, queries_and_keys

from xcope.errors import FlagError

TRAINED = 64


def ours(**options):
    return module("rotary_llama3", original_max_position_embeddings=TRAINED, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": 100.0, "factor": 2.0},
        {"base": 300.0, "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0},
        {"base": 300.0, "dim": 0.5},
        {"base": 300.0, "factor": 16.0, "high_freq_factor": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [7, 200])
def test_as_llama(n, options):
    q, k = queries_and_keys(n, kv_heads=2)
    pos = torch.arange(n)
    theirs = {
        "rope_type": "llama3",
        "rope_theta": options.get("base", 500000.0),
        "factor": options.get("factor", 8.0),
        "low_freq_factor": options.get("low_freq_factor", 1.0),
        "high_freq_factor": options.get("high_freq_factor", 4.0),
        "original_max_position_embeddings": TRAINED,
    }
    turned = ours(**options).rotate(q, k, pos, pos)
    width = D // 2 if "dim" in options else D
    if width < D:
        theirs["partial_rotary_factor"] = 0.5
        for whole, x in zip(turned, (q, k), strict=True):
            assert torch.equal(whole[..., width:], x[..., width:])
    expected = llama(q[..., :width], k[..., :width], pos, 512, **theirs)
    found = [whole[..., :width] for whole in turned]
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-4)


def test_a_llama_s_config_can_be_typed_in():
    config = """{"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                 "original_max_position_embeddings": 8192}"""
    typed = module("rotary_llama3", **json.loads(config))
    default = module("rotary_llama3", original_max_position_embeddings=8192)
    assert torch.equal(typed.freq_scale, default.freq_scale)
    with pytest.raises(FlagError, match=r"has no option 'rope_theta': it takes .*'base'"):
        module("rotary_llama3", rope_theta=500000.0)


def test_slow_pairs_are_slowed_by_the_factor_fast_ones_are_not_and_some_lie_between():
    scale = module(
        "rotary_llama3", base=10000.0, factor=4.0, original_max_position_embeddings=300
    ).freq_scale
    turns = [300 * 10000.0 ** (-m / 8) / (2 * math.pi) for m in range(8)]
    for one, value in zip(turns, scale.tolist(), strict=True):
        assert value == pytest.approx(1.0 if one > 4 else 0.25 if one < 1 else value)
    assert ((scale > 0.25) & (scale < 1)).any()


def test_depends_on_places_alone():
    assert_depends_on_places_alone(ours())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rotary_llama3_original_max_position_embeddings=None .* the length"),
        ({"factor": 0.5}, "rotary_llama3_factor=0.5 is not allowed: at least 1"),
        ({"low_freq_factor": 0.0}, "rotary_llama3_low_freq_factor=0.0 .* above 0"),
        ({"high_freq_factor": 0.5}, "rotary_llama3_high_freq_factor=0.5 .*low_freq_factor=1.0"),
    ],
    ids=str,
)
def test_errors(options, message):
    given = {"original_max_position_embeddings": TRAINED} | options if options else {}
    with pytest.raises(FlagError, match=message):
        module("rotary_llama3", **given)
