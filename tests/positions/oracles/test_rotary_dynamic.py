"""Dynamic NTK against Hugging Face's Llama, up to the trained length and past it."""

import pytest
import torch
from rotations import D, llama, module, queries_and_keys

from xcope.errors import FlagError

TRAINED = 32


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("n", [7, TRAINED, TRAINED + 1, 90])
def test_as_llama(n, factor):
    q, k = queries_and_keys(n, kv_heads=2)
    pos = torch.arange(n)
    options = {"dim": D, "layout": "half_split", "factor": factor, "trained_len": TRAINED}
    ours = module("rotary_dynamic", **options).rotate(q, k, pos, pos)
    expected = llama(q, k, pos, TRAINED, rope_type="dynamic", factor=factor)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=5e-5)


def test_up_to_the_trained_length_it_is_plain_rotary():
    q, k = queries_and_keys(TRAINED)
    pos = torch.arange(TRAINED)
    ours, plain = module("rotary_dynamic", trained_len=TRAINED), module("rotary")
    torch.testing.assert_close(ours.rotate(q, k, pos, pos), plain.rotate(q, k, pos, pos))


def test_the_length_is_that_of_the_largest_place_of_the_row():
    rotation = module("rotary_dynamic", trained_len=TRAINED, factor=2.0)
    q, k = queries_and_keys(20)
    pos = torch.stack([torch.arange(20) - 5, torch.arange(20) + 40])
    together = rotation.rotate(q, k, pos, pos)
    for row, last in enumerate((14, 59)):
        # a key at place 59 alone makes the text as long
        frequencies = rotation.frequencies(torch.tensor([last]))
        assert torch.equal(frequencies, rotation.frequencies(pos)[row, 0])
        expected = module("rotary").double()
        expected.inv_freq.copy_(frequencies)
        alone = expected.rotate(q.double(), k.double(), pos[row], pos[row])
        for ours, exact in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], exact[row].float(), rtol=1e-4, atol=5e-5)


def test_a_query_at_the_end_is_turned_as_in_the_whole_text():
    rotation = module("rotary_dynamic", trained_len=TRAINED)
    q, k = queries_and_keys(50)
    pos = torch.arange(50)
    whole, tail = (rotation.rotate(q[:, :, -i:], k, pos[-i:], pos) for i in (50, 2))
    torch.testing.assert_close(tail[0], whole[0][:, :, -2:])
    torch.testing.assert_close(tail[1], whole[1])


def test_it_says_that_no_cache_can_be_kept():
    assert module("rotary_dynamic", trained_len=TRAINED).length_dependent
    assert not module("rotary").length_dependent


def test_a_checkpoint_of_plain_rotary_loads():
    ours = module("rotary_dynamic", trained_len=TRAINED)
    ours.load_state_dict(module("rotary").state_dict(), strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rotary_dynamic_trained_len=None is not allowed: set it to the length"),
        ({"trained_len": 0}, "rotary_dynamic_trained_len=0 is not allowed: set it to the length"),
        ({"trained_len": 9, "factor": 0.5}, "rotary_dynamic_factor=0.5 is not allowed: at least 1"),
        (
            {"trained_len": 9, "dim": 2},
            "rotary_dynamic_dim=2 is not allowed: an even number from 4",
        ),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("rotary_dynamic", **options)
