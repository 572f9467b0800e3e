"""NTK-aware rotary against rotary-embedding-torch."""

import pytest
import torch
from rotary_embedding_torch import RotaryEmbedding
from rotations import D, assert_depends_on_places_alone, module, queries_and_keys

from xcope.errors import FlagError


@pytest.mark.parametrize("dim", [4, 8, D])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_as_rotary_embedding_torch(factor, dim):
    q, k = queries_and_keys(70)
    pos = torch.arange(70)
    theirs = RotaryEmbedding(dim, theta_rescale_factor=factor)
    expected = tuple(theirs.rotate_queries_or_keys(t) for t in (q, k))
    ours = module("rotary_ntk", dim=dim, factor=factor).rotate(q, k, pos, pos)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)


def test_the_slowest_pair_turns_factor_times_slower_and_the_fastest_as_before():
    plain = module("rotary").inv_freq
    ours = module("rotary_ntk", factor=6.0).frequencies(torch.arange(3))
    torch.testing.assert_close(ours[0], plain[0])
    torch.testing.assert_close(ours[-1], plain[-1] / 6)


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary_ntk"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.5}, "rotary_ntk_factor=0.5 is not allowed: at least 1"),
        ({"dim": 2}, "rotary_ntk_dim=2 is not allowed: an even number from 4"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("rotary_ntk", **options)
