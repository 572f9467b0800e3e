"""Copy against reading the two strings off the words."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, task

SPLITS = {"train": 1, "in_distribution": 1, "longer_2x": 2, "longer_4x": 4, "longer_8x": 8}


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 20),
    values=st.integers(2, 300),
    split=st.sampled_from(list(SPLITS)),
    seed=st.integers(0, 10**6),
)
def test_the_string_is_repeated_and_ended(length, values, split, seed):
    one = task("copy", {"length": length, "values": values})
    assert one.num_tokens == values + 2
    most = length * SPLITS[split]
    batch = one.batch(split, 5, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        words = one.decode(tokens).split()
        assert len(words) == 2 * most + 2
        bar = words.index("|")
        assert 1 <= bar <= most if SPLITS[split] == 1 else bar == most
        string = words[:bar]
        assert all(0 <= int(word) < values for word in string)
        assert words[bar + 1 : 2 * bar + 1] == string
        assert set(words[2 * bar + 1 :]) == {"."}
        # scored: the copy and the first end, each from the place before it
        assert targets[:bar] == [IGNORE] * bar
        assert one.decode(targets[bar : 2 * bar + 1]).split() == [*string, "."]
        assert set(targets[2 * bar + 1 :]) == {IGNORE}


def test_values_are_even_and_training_has_every_length():
    one = task("copy", {"length": 5, "values": 4})
    n = 4000
    rows = [one.decode(row).split() for row in one.batch("train", n, 0, 0).tokens.tolist()]
    lengths = Counter(row.index("|") for row in rows)
    assert sorted(lengths) == [1, 2, 3, 4, 5]
    assert all(abs(count - n / 5) < 6 * (n * 4 / 25) ** 0.5 for count in lengths.values())
    values = Counter(word for row in rows for word in row[: row.index("|")])
    m = values.total()
    assert sorted(values) == ["0", "1", "2", "3"]
    assert all(abs(count - m / 4) < 6 * (m * 3 / 16) ** 0.5 for count in values.values())


def test_the_stream_is_the_same_on_any_machine():
    words = task("copy").decode(task("copy").batch("train", 1, 0, 0).tokens[0].tolist())
    assert words.startswith("9 4 10 6 7 0 7 10 11 0")


@pytest.mark.parametrize(
    ("option", "value"),
    [("length", 0), ("length", 2.5), ("values", 1), ("values", None), ("stretch", -2)],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(FlagError, match=option) as caught:
        task("copy", {option: value})
    assert caught.value.flag == option
