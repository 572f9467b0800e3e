"""Soft-clipped rotary against its formula in plain loops."""

import math

import pytest
import torch
from rotations import D, assert_depends_on_places_alone, module, queries_and_keys

from xcope.errors import FlagError
from xcope.positions.rotary_clipped import pairs_to_clip


def in_loops(x, dim, base, clip):
    """x (b h n d) with its pairs (2m, 2m + 1) turned at the places 0 … n − 1."""
    out = x.double().clone()
    for m in range(dim // 2):
        omega = base ** (-2 * m / dim)
        nth = m - (dim // 2 - clip)
        if nth >= 0:
            omega *= 0.5 * (1 + math.cos(math.pi * nth / (clip - 1) if clip > 1 else 0.0))
        for i in range(x.shape[2]):
            c, s = math.cos(i * omega), math.sin(i * omega)
            a, b = x[:, :, i, 2 * m].double(), x[:, :, i, 2 * m + 1].double()
            out[:, :, i, 2 * m] = a * c - b * s
            out[:, :, i, 2 * m + 1] = a * s + b * c
    return out.float()


@pytest.mark.parametrize(("dim", "clip"), [(D, 3), (D, 8), (8, 2), (8, 1), (8, 0)])
def test_the_formula(dim, clip):
    q, k = queries_and_keys(12)
    pos = torch.arange(12)
    ours = module("rotary_clipped", dim=dim, clip=clip, base=500.0).rotate(q, k, pos, pos)
    for out, x in zip(ours, (q, k), strict=True):
        torch.testing.assert_close(out, in_loops(x, dim, 500.0, clip), rtol=1e-5, atol=1e-5)


def test_the_slowest_pair_stands_still_and_the_first_clipped_one_is_as_it_was():
    plain = module("rotary", dim=D).inv_freq
    ours = module("rotary_clipped", dim=D, clip=4).frequencies(torch.arange(3))
    torch.testing.assert_close(ours[:5], plain[:5])
    assert (ours[5:7] < plain[5:7]).all()
    assert ours[-1] == 0


def test_three_quarters_of_the_pairs_without_a_full_turn_in_training_are_clipped():
    periods = [2 * math.pi * 500000 ** (m / 64) for m in range(64)]
    incomplete = [m for m in range(64) if periods[m] > 8192]
    assert pairs_to_clip(128, 500000.0, 8192) == round(0.75 * len(incomplete))
    assert pairs_to_clip(128, 500000.0, 10**9) == 0

    by_length = module("rotary_clipped", dim=D, trained_len=100)
    by_number = module("rotary_clipped", dim=D, clip=pairs_to_clip(D, 10000.0, 100), trained_len=3)
    assert torch.equal(by_length.freq_scale, by_number.freq_scale)
    with torch.device("meta"):
        assert module("rotary_clipped", trained_len=100).freq_scale.is_meta


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary_clipped", clip=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either rotary_clipped_clip.* or rotary_clipped_trained_len"),
        ({"trained_len": 0}, "rotary_clipped_trained_len=0 is not allowed"),
        ({"clip": -1}, "rotary_clipped_clip=-1 is not allowed: 0 to 4"),
        ({"clip": 5}, "rotary_clipped_clip=5 is not allowed: 0 to 4, the number of pairs"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("rotary_clipped", **options)
