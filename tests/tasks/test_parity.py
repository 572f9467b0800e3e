"""Parity against adding up the ones by hand."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, task

SPLITS = {"train": 1, "in_distribution": 1, "longer_2x": 2, "longer_4x": 4}


def answers(bits: list[str]) -> list[str]:
    """The parity after each bit."""
    ones, said = 0, []
    for bit in bits:
        ones += {"0": 0, "1": 1}[bit]
        said.append("even" if ones in range(0, 1000, 2) else "odd")
    return said


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 20), split=st.sampled_from(list(SPLITS)), seed=st.integers(0, 10**6))
def test_with_a_scratchpad_each_bit_is_followed_by_the_parity_so_far(length, split, seed):
    one = task("parity", {"length": length, "stretch": 4})
    batch = one.batch(split, 5, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        words = one.decode(tokens).split()
        assert len(words) == 2 * length * SPLITS[split]
        assert words[1::2] == answers(words[::2])
        assert one.decode(targets[::2]).split() == words[1::2]
        assert set(targets[1::2]) == {IGNORE}, "bits are not scored"


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 20), split=st.sampled_from(list(SPLITS)), seed=st.integers(0, 10**6))
def test_without_one_the_answer_follows_the_query(length, split, seed):
    one = task("parity", {"length": length, "scratchpad": False, "stretch": 4})
    most = length * SPLITS[split]
    batch = one.batch(split, 5, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        words = one.decode(tokens).split()
        assert len(words) == most + 2
        query = words.index("?")
        assert 1 <= query <= most if SPLITS[split] == 1 else query == most
        assert words[query + 1] == answers(words[:query])[-1]
        assert set(words[query + 2 :]) <= {"."}
        assert one.decode(targets[query : query + 1]) == words[query + 1]
        assert {*targets[:query], *targets[query + 1 :]} == {IGNORE}


def test_bits_are_fair_and_training_has_every_length():
    one = task("parity", {"length": 6, "scratchpad": False})
    n = 6000
    rows = [one.decode(row).split() for row in one.batch("train", n, 0, 0).tokens.tolist()]
    lengths = Counter(row.index("?") for row in rows)
    assert sorted(lengths) == [1, 2, 3, 4, 5, 6]
    assert all(abs(count - n / 6) < 6 * (n * 5 / 36) ** 0.5 for count in lengths.values())
    bits = Counter(bit for row in rows for bit in row[: row.index("?")])
    assert abs(bits["1"] - bits.total() / 2) < 6 * (bits.total() / 4) ** 0.5


def test_the_stream_is_the_same_on_any_machine():
    words = task("parity").decode(task("parity").batch("train", 1, 0, 0).tokens[0].tolist())
    assert words.startswith("0 even 0 even 1 odd 0 odd")


@pytest.mark.parametrize(
    ("option", "value"),
    [("length", 0), ("length", "16"), ("scratchpad", 1), ("stretch", 0), ("stretch", 6)],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(FlagError, match=option) as caught:
        task("parity", {option: value})
    assert caught.value.flag == option
