"""Selective copy against striking out the blanks by hand."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, task


@st.composite
def options(draw):
    blanks = draw(st.integers(1, 20))
    return {
        "tokens": draw(st.integers(1, 20)),
        "blanks": blanks,
        "dense_blanks": draw(st.none() | st.integers(0, blanks - 1)),
        "sparse_blanks": draw(st.none() | st.integers(blanks + 1, 50)),
        "values": draw(st.integers(2, 300)),
    }


@settings(max_examples=40, deadline=None)
@given(
    options=options(),
    split=st.sampled_from(("train", "in_distribution", "dense", "sparse")),
    seed=st.integers(0, 10**6),
)
def test_the_tokens_that_are_not_blank_are_repeated_in_order(options, split, seed):
    one = task("selective_copy", options)
    half, double = options["blanks"] // 2, options["blanks"] * 2
    dense, sparse = options["dense_blanks"], options["sparse_blanks"]
    blanks = {
        "dense": half if dense is None else dense,
        "sparse": double if sparse is None else sparse,
    }.get(split, options["blanks"])
    assert one.num_tokens == options["values"] + 2

    batch = one.batch(split, 4, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        context, copied = (part.split() for part in one.decode(tokens).split("|"))
        assert context.count(".") == blanks
        assert copied == [word for word in context if word != "."]
        assert len(copied) == options["tokens"]
        assert all(0 <= int(word) < options["values"] for word in copied)
        # scored: exactly the copied tokens, each from the place before it
        assert targets[: len(context)] == [IGNORE] * len(context)
        assert one.decode(targets[len(context) : -1]).split() == copied
        assert targets[-1] == IGNORE


def test_places_and_values_are_even():
    one = task("selective_copy", {"tokens": 6, "blanks": 10, "values": 4})
    n = 4000
    rows = [one.decode(row).split() for row in one.batch("train", n, 0, 0).tokens.tolist()]
    share = 6 / 16
    for place in range(16):
        filled = sum(row[place] != "." for row in rows)
        assert abs(filled - n * share) < 6 * (n * share * (1 - share)) ** 0.5
    values = Counter(word for row in rows for word in row[17:])
    assert sorted(values) == ["0", "1", "2", "3"]
    for count in values.values():
        assert abs(count - 6 * n / 4) < 6 * (6 * n * 3 / 16) ** 0.5


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("tokens", {"tokens": 0}),
        ("blanks", {"blanks": 0}),
        ("blanks", {"blanks": None}),
        ("values", {"values": 1}),
        ("values", {"values": "16"}),
        ("dense_blanks", {"blanks": 8, "dense_blanks": 8}),
        ("dense_blanks", {"dense_blanks": -1}),
        ("sparse_blanks", {"blanks": 8, "sparse_blanks": 8}),
        ("sparse_blanks", {"sparse_blanks": 2.5}),
    ],
)
def test_bad_options_are_named(option, options):
    with pytest.raises(FlagError, match=option) as caught:
        task("selective_copy", options)
    assert caught.value.flag == option
