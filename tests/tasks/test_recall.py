"""Recall against a dictionary that is filled from the pairs."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, task

MULTIPLES = {"longer_2x": 2, "longer_4x": 4}
SPLITS = ("train", "in_distribution", "more_pairs", *MULTIPLES)


@st.composite
def options(draw):
    pairs = draw(st.integers(1, 8))
    more = draw(st.none() | st.integers(pairs + 1, 12))
    return {
        "pairs": pairs,
        "more_pairs": more,
        "blanks": draw(st.integers(0, 20)),
        "keys": draw(st.integers(2 * pairs if more is None else more, 40)),
        "values": draw(st.integers(2, 40)),
        "stretch": 4,
    }


@settings(max_examples=60, deadline=None)
@given(options=options(), split=st.sampled_from(SPLITS), seed=st.integers(0, 10**6))
def test_each_key_is_asked_once_and_its_value_follows(options, split, seed):
    one = task("recall", options)
    assert one.num_tokens == 1 + options["keys"] + options["values"]
    training = 4 * options["pairs"] + options["blanks"]
    more = options["more_pairs"] or 2 * options["pairs"]
    pairs = more if split == "more_pairs" else options["pairs"]
    length = (
        4 * more + options["blanks"]
        if split == "more_pairs"
        else training * MULTIPLES.get(split, 1)
    )
    batch = one.batch(split, 5, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        words = one.decode(tokens).split()
        assert len(words) == length
        memory = dict(zip(words[: 2 * pairs : 2], words[1 : 2 * pairs : 2], strict=True))
        assert len(memory) == pairs, "keys differ"
        assert all(key[0] == "k" and value[0] == "v" for key, value in memory.items())
        asked, place = [], 2 * pairs
        expected = [IGNORE] * length
        while place < length:
            if words[place] == ".":
                place += 1
                continue
            asked.append(words[place])
            assert words[place + 1] == memory[words[place]]
            expected[place] = tokens[place + 1]
            place += 2
        assert sorted(asked) == sorted(memory)
        assert targets == expected


def test_keys_order_and_gaps_are_even():
    one = task("recall", {"pairs": 3, "blanks": 4, "keys": 6, "values": 5})
    n = 4000
    rows = [one.decode(row).split() for row in one.batch("train", n, 0, 0).tokens.tolist()]
    keys = Counter(row[0] for row in rows)
    assert sorted(keys) == [f"k{k}" for k in range(6)]
    assert all(abs(count - n / 6) < 6 * (n * 5 / 36) ** 0.5 for count in keys.values())
    orders = Counter(
        tuple(row[:6:2].index(word) for word in row[6:] if word[0] == "k") for row in rows
    )
    assert len(orders) == 6
    assert all(abs(count - n / 6) < 6 * (n * 5 / 36) ** 0.5 for count in orders.values())
    # the first of 7 slots is a question with chance 3/7
    at_once = sum(row[6] != "." for row in rows)
    assert abs(at_once - n * 3 / 7) < 6 * (n * 12 / 49) ** 0.5


def test_the_longer_splits_have_trainings_pairs_and_more_pairs_does_not():
    one = task("recall")
    for split, pairs in (("in_distribution", 8), ("more_pairs", 16), ("longer_8x", 8)):
        row = one.decode(one.batch(split, 1, 0, 0).tokens[0].tolist()).split()
        assert sum(word[0] == "k" for word in row) == 2 * pairs
    assert one.length_splits == ("in_distribution", "longer_2x", "longer_4x", "longer_8x")


def test_the_stream_is_the_same_on_any_machine():
    words = task("recall").decode(task("recall").batch("train", 1, 0, 0).tokens[0].tolist())
    assert words.startswith(
        "k28 v24 k19 v6 k29 v9 k21 v9 k4 v22 k3 v9 k22 v3 k30 v31 . . . . . . . ."
    )


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("pairs", {"pairs": 0}),
        ("more_pairs", {"pairs": 4, "more_pairs": 4}),
        ("blanks", {"blanks": -1}),
        ("blanks", {"blanks": None}),
        ("keys", {"pairs": 4, "keys": 7}),
        ("values", {"values": 1}),
        ("stretch", {"stretch": 3}),
    ],
)
def test_bad_options_are_named(option, options):
    with pytest.raises(FlagError, match=option) as caught:
        task("recall", options)
    assert caught.value.flag == option
