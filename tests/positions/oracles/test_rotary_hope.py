"""HoPE against its formula in plain loops."""

import math

import pytest
import torch
from rotations import D, assert_depends_on_places_alone, module, queries_and_keys

from xcope.errors import FlagError


def in_loops(x, dim, base, trained_len):
    """x (b h n d) with its pairs (2m, 2m + 1) turned at the places 0 … n − 1, if they are fast."""
    out = x.double().clone()
    for m in range(dim // 2):
        omega = base ** (-2 * m / dim)
        if omega * trained_len < 2 * math.pi:
            continue
        for i in range(x.shape[2]):
            c, s = math.cos(i * omega), math.sin(i * omega)
            a, b = x[:, :, i, 2 * m].double(), x[:, :, i, 2 * m + 1].double()
            out[:, :, i, 2 * m] = a * c - b * s
            out[:, :, i, 2 * m + 1] = a * s + b * c
    return out.float()


@pytest.mark.parametrize(("dim", "trained_len"), [(D, 100), (D, 6), (8, 2000), (8, 10**9)])
def test_the_formula(dim, trained_len):
    q, k = queries_and_keys(12)
    pos = torch.arange(12)
    rotation = module("rotary_hope", dim=dim, trained_len=trained_len, base=500.0)
    for out, x in zip(rotation.rotate(q, k, pos, pos), (q, k), strict=True):
        torch.testing.assert_close(out, in_loops(x, dim, 500.0, trained_len), rtol=1e-5, atol=1e-5)


def test_the_number_of_pairs_may_be_given_and_is_a_share_of_p_rope():
    hope = module("rotary_hope", dim="whole", kept=6)
    p_rope = module("rotary_proportional", partial_rotary_factor=0.75)
    assert torch.equal(hope.freq_scale, p_rope.freq_scale)
    by_length = module("rotary_hope", dim="whole", trained_len=100)
    assert by_length.freq_scale.sum() == 3  # periods 6, 20, 63 and 199


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary_hope", trained_len=100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either rotary_hope_trained_len.* or rotary_hope_kept"),
        ({"trained_len": 0}, "rotary_hope_trained_len=0 is not allowed"),
        ({"kept": 5}, "rotary_hope_kept=5 is not allowed: 0 to 4, the number of pairs"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("rotary_hope", **options)
