"""LongRoPE against Hugging Face's Llama."""

import math

import pytest
import torch
from rotations import D, llama, logits, module, queries_and_keys

from xcope.errors import FlagError

TRAINED = 32
SHORT = [1.0 + 0.05 * m for m in range(D // 2)]
LONG = [1.0 + 0.7 * m for m in range(D // 2)]
FACTORS = {"short_factor": SHORT, "long_factor": LONG}


def ours(**options):
    given = {"original_max_position_embeddings": TRAINED} | options
    return module("rotary_longrope", **given)


@pytest.mark.parametrize("options", [{"factor": 4.0}, {"attention_factor": 1.3}], ids=str)
@pytest.mark.parametrize("n", [7, TRAINED, TRAINED + 1, 100])
def test_as_llama_up_to_the_trained_length_and_beyond(n, options):
    q, k = queries_and_keys(n, kv_heads=2)
    pos = torch.arange(n)
    theirs = {
        "rope_type": "longrope",
        "original_max_position_embeddings": TRAINED,
        "factor": 2.0,
        **FACTORS,
        **options,
    }
    expected = llama(q, k, pos, 4 * TRAINED, **theirs)
    found = ours(**FACTORS, **options).rotate(q, k, pos, pos)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_each_row_has_the_factors_of_its_own_length():
    rotation = ours(**FACTORS)
    q, k = queries_and_keys(20, kv_heads=2)
    rows = torch.stack([torch.arange(20), torch.arange(20) + TRAINED])
    together = logits(rotation, q, k, rows, rows)
    for row in range(2):
        alone = logits(rotation, q[row, None], k[row, None], rows[row], rows[row])
        torch.testing.assert_close(together[row, None], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_without_factors_of_its_own_short_texts_are_plain_and_long_ones_ntk_aware():
    rotation = ours(factor=3.0, attention_factor=1.0)
    plain, ntk = module("rotary", dim=D), module("rotary_ntk", dim=D, factor=3.0)
    for n, other in ((TRAINED, plain), (TRAINED + 1, ntk)):
        pos = torch.arange(n)
        torch.testing.assert_close(rotation.frequencies(pos), other.frequencies(pos))


def test_the_attention_factor_is_the_paper_s():
    assert ours(factor=8.0).amplitude == pytest.approx(
        math.sqrt(1 + math.log(8) / math.log(TRAINED))
    )
    assert ours(factor=1.0).amplitude == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"original_max_position_embeddings": None}, "embeddings=None .* the length"),
        ({"original_max_position_embeddings": 1}, "embeddings=1 .* logarithm"),
        ({"factor": 0.5}, "rotary_longrope_factor=0.5 is not allowed: at least 1"),
        ({"short_factor": [1.0, 2.0]}, "short_factor=.1.0, 2.0. .* 8 numbers above 0, one for"),
        ({"long_factor": [0.0] * 8}, "rotary_longrope_long_factor=.* 8 numbers above 0"),
        ({"attention_factor": 0.0}, "rotary_longrope_attention_factor=0.0 .* above 0"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        ours(**options)
