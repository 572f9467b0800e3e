"""Flip-Flop against a memory of one bit that reads the written sequence word by word."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, task

SPLITS = ("train", "in_distribution", "dense", "sparse", "longer_2x", "longer_4x")
probability = st.floats(0, 1)


@settings(max_examples=40, deadline=None)
@given(
    instructions=st.integers(2, 40),
    p=st.tuples(probability, probability, probability),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 10**6),
)
def test_reads_repeat_the_last_written_bit(instructions, p, split, seed):
    one = task(
        "flip_flop",
        {
            "instructions": instructions, "p_train": p[0], "p_dense": p[1], "p_sparse": p[2],
            "stretch": 4,
        },
    )  # fmt: skip
    multiple = {"longer_2x": 2, "longer_4x": 4}.get(split, 1)
    assert one.num_tokens == 5
    batch = one.batch(split, 5, seed, 0)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        words = one.decode(tokens).split()
        assert len(words) == 2 * instructions * multiple
        assert words[0] == "w"
        assert words[-2] == "r"
        stored = None
        for place, (instruction, bit) in enumerate(zip(words[::2], words[1::2], strict=True)):
            assert instruction in {"w", "r", "i"}
            assert bit in {"0", "1"}
            if instruction == "w":
                stored = bit
            if instruction == "r":
                assert bit == stored
                assert targets[2 * place] == one.encode(bit)[0]
            else:
                assert targets[2 * place] == IGNORE
            assert targets[2 * place + 1] == IGNORE, "instructions are not scored"


@pytest.mark.parametrize(
    ("split", "p"),
    [
        ("train", 0.8), ("in_distribution", 0.8), ("dense", 0.1), ("sparse", 0.98),
        ("longer_2x", 0.8),
    ],
)  # fmt: skip
def test_proportions_are_those_of_ffl(split, p):
    one = task("flip_flop", {"instructions": 200, "stretch": 2})
    rows = [one.decode(row).split() for row in one.batch(split, 300, 1, 0).tokens.tolist()]
    inner = [word for row in rows for word in row[2:-2:2]]
    n = len(inner)
    for word, share in (("i", p), ("w", (1 - p) / 2), ("r", (1 - p) / 2)):
        assert abs(inner.count(word) - n * share) < 6 * (n * share * (1 - share)) ** 0.5
    free = [b for row in rows for a, b in zip(row[::2], row[1::2], strict=True) if a != "r"]
    assert abs(free.count("1") - len(free) / 2) < 6 * (len(free) / 4) ** 0.5


def test_the_default_is_the_papers_size():
    assert task("flip_flop").seq_len("sparse") == 512


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("instructions", 1),
        ("instructions", -3),
        ("instructions", 8.0),
        ("instructions", "many"),
        ("instructions", True),
        ("p_train", 1.5),
        ("p_dense", -0.1),
        ("p_sparse", float("nan")),
        ("p_sparse", "0.98"),
        ("p_dense", None),
    ],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(FlagError, match=option) as caught:
        task("flip_flop", {option: value})
    assert caught.value.flag == option
