"""Rotary with linear interpolation against Hugging Face's Llama."""

import pytest
import torch
from rotations import D, assert_depends_on_places_alone, llama, module, queries_and_keys

from xcope.errors import FlagError


@pytest.mark.parametrize("factor", [1.0, 2.0, 5.5])
@pytest.mark.parametrize("n", [7, 70])
def test_as_llama(n, factor):
    q, k = queries_and_keys(n, kv_heads=2)
    pos = torch.arange(n)
    ours = module("rotary_linear", dim=D, layout="half_split", factor=factor)
    expected = llama(q, k, pos, 32, rope_type="linear", factor=factor)
    torch.testing.assert_close(ours.rotate(q, k, pos, pos), expected, rtol=1e-4, atol=2e-5)


def test_it_is_rotarys_interpolation_factor_at_half_width():
    q, k = queries_and_keys(40)
    pos = torch.arange(40)
    ours, same = module("rotary_linear", factor=3.0), module("rotary", interpolation_factor=3.0)
    torch.testing.assert_close(
        ours.rotate(q, k, pos, pos), same.rotate(q, k, pos, pos), rtol=1e-4, atol=2e-5
    )


def test_a_checkpoint_of_plain_rotary_loads_and_stays_interpolated():
    trained, ours = module("rotary", base=500.0), module("rotary_linear", factor=2.0)
    ours.load_state_dict(trained.state_dict(), strict=True)
    torch.testing.assert_close(ours.frequencies(torch.arange(3)), trained.inv_freq / 2)


def test_depends_on_places_alone():
    assert_depends_on_places_alone(module("rotary_linear"))


def test_a_factor_below_1():
    with pytest.raises(FlagError, match=r"rotary_linear_factor=0\.5 is not allowed: at least 1"):
        module("rotary_linear", factor=0.5)
