"""Indexing against splitting the text by hand; the text is real, and of the right files."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import IGNORE, Task, task

MULTIPLES = {"longer_2x": 2, "longer_4x": 4}
SPLITS = ("train", "in_distribution", "larger_k", *MULTIPLES)
MakeTask = Callable[..., Task]


@pytest.fixture(scope="module")
def make(corpus: Path) -> MakeTask:
    def build(**options: Any) -> Task:
        return task("indexing", {"corpus": str(corpus), "held_out": 0.3, "stretch": 4, **options})

    return build


def pieces_of(make: MakeTask, split: str, unit: str) -> list[str]:
    """The words or lines of the split's side of the corpus, in order."""
    text = make(held_out=0.3).source(split).decode().replace("\0", "\n")
    lines = [" ".join(line.split()) for line in text.split("\n") if line.split()]
    return text.split() if unit == "word" else lines


def parts(one: Task, tokens: list[int], targets: list[int]) -> tuple[str, int, str]:
    """Text, k and what is scored; the row is checked for its form."""
    row = bytes(tokens).decode().rstrip("\0")
    found = re.fullmatch(r"(.*)\n#(\d+):([^\n]*\n)", row, re.DOTALL)
    assert found
    begin = len(row.encode()) - len(found[3].encode())
    end = len(row.encode())
    assert targets[: begin - 1] == [IGNORE] * (begin - 1)
    assert set(targets[end - 1 :]) == {IGNORE}
    return found[1], int(found[2]), bytes(targets[begin - 1 : end - 1]).decode()


@settings(max_examples=60, deadline=None)
@given(
    unit=st.sampled_from(("word", "line")),
    backwards=st.booleans(),
    length=st.integers(90, 160),
    max_k=st.integers(2, 4),
    longest=st.integers(4, 8),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 10**6),
)
def test_the_answer_is_the_kth_word(make, unit, backwards, length, max_k, longest, split, seed):
    one = make(unit=unit, backwards=backwards, length=length, max_k=max_k, longest_word=longest)
    most = length * (2 if split == "larger_k" else MULTIPLES.get(split, 1))
    assert one.seq_len(split) == most + 4 + longest + 1
    source = pieces_of(make, split, unit)
    between = " " if unit == "word" else "\n"

    batch = one.batch(split, 4, seed, 0)
    assert batch.tokens.shape == (4, one.seq_len(split))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        text, k, answer = parts(one, tokens, targets)
        pieces = text.split(between)
        assert (max_k < k <= 2 * max_k) if split == "larger_k" else 1 <= k <= max_k
        word = pieces[-k if backwards else k - 1].split(" ")[0]
        assert answer == word + "\n"
        assert len(word.encode()) <= longest
        # consecutive pieces of the split's own files, as many as fit
        place = occurrence(source, pieces, most, between)
        assert place is not None


def occurrence(source: list[str], pieces: list[str], most: int, between: str) -> int | None:
    """Where the pieces stand in the source such that the next one would not fit any more."""
    n = len(pieces)
    used = len(between.join(pieces).encode())
    assert used <= most
    for i in range(len(source) - n + 1):
        if source[i : i + n] == pieces:
            following = source[i + n : i + n + 1]
            if not following or used + len((between + following[0]).encode()) > most:
                return i
    return None


def test_every_k_and_every_start_occurs(tmp_path: Path):
    (tmp_path / "words.txt").write_text(" ".join(f"w{i:02}" for i in range(40)))
    one = task("indexing", {"corpus": str(tmp_path / "words.txt"), "held_out": 0.5, "length": 39,
                            "max_k": 5, "stretch": 1})  # fmt: skip
    batch = one.batch("in_distribution", 3000, 0, 0)
    found = [parts(one, *row) for row in zip(batch.tokens.tolist(), batch.targets.tolist(),
                                             strict=True)]  # fmt: skip
    numbers = Counter(k for _, k, _ in found)
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    assert min(numbers.values()) > 400
    # what is held out begins within w26
    assert {text.split()[0] for text, _, _ in found} == {"6", *(f"w{i}" for i in range(27, 40))}


def test_long_words_are_counted_but_not_asked(tmp_path: Path):
    (tmp_path / "words.txt").write_text("a bb extraordinary ccc " * 40)
    one = task("indexing", {"corpus": str(tmp_path / "words.txt"), "held_out": 0.5, "max_k": 4,
                            "longest_word": 3, "stretch": 1})  # fmt: skip
    batch = one.batch("train", 500, 0, 0)
    rows = zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True)
    assert {parts(one, *row)[2] for row in rows} == {"a\n", "bb\n", "ccc\n"}


def test_no_test_text_is_training_text(make):
    one = make(length=60, max_k=3)
    numbers = {}
    for split in SPLITS:
        rows = one.batch(split, 200, 0, 0).tokens.tolist()
        numbers[split] = set(re.findall(r"x_(\d+) =", "".join(map(one.decode, rows))))
    for split in SPLITS[1:]:
        assert numbers[split]
        assert not numbers["train"] & numbers[split]


def test_the_stream_is_the_same_on_any_machine(make):
    one = make(length=40, max_k=3)
    row = one.decode(one.batch("train", 1, 0, 0).tokens[0].tolist())
    assert row.rstrip("\0") == "# ünï x_16 = 1 # ünï x_16 = 2 #\n#3:x_16\n"


def test_the_standard_library_is_the_default():
    one = task("indexing")
    assert one.seq_len("longer_8x") == 8 * 32 + 4 + 12 + 1
    assert "def" in one.decode(one.batch("in_distribution", 64, 0, 0).tokens.flatten().tolist())


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("unit", {"unit": "letter"}),
        ("unit", {"unit": None}),
        ("backwards", {"backwards": "yes"}),
        ("length", {"length": 0}),
        ("length", {"length": 4}),
        ("length", {"unit": "line", "length": 20, "max_k": 8}),
        ("max_k", {"max_k": 1}),
        ("longest_word", {"longest_word": 0}),
        ("stretch", {"stretch": 5}),
        ("corpus", {"corpus": "no/such/folder"}),
        ("held_out", {"held_out": 1}),
    ],
)
def test_bad_options_are_named(make, option, options):
    with pytest.raises(FlagError, match=option) as caught:
        make(**options)
    assert caught.value.flag == option


def test_a_corpus_without_words_is_named(tmp_path: Path):
    (tmp_path / "nothing.txt").write_text(" \n\n \n")
    with pytest.raises(FlagError, match="no text of") as caught:
        task("indexing", {"corpus": str(tmp_path / "nothing.txt")})
    assert caught.value.flag == "length"
