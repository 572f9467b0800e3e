"""The text task on small folders: windows are real text and no file is on both sides."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcope.errors import FlagError
from xcope.tasks import Batch, Task, task


def text_of(one: Task, split: str) -> bytes:
    return one.source(split)


def numbers(text: bytes) -> set[bytes]:
    """The files of the fixture that this text is from."""
    return set(re.findall(rb"x_(\d+) =", text))


def sides_of(one: Task) -> tuple[bytes, bytes]:
    """All text to train on, and all that is held out."""
    return text_of(one, "train"), text_of(one, "validation") + text_of(one, "held_out")


def test_every_file_is_on_one_side_and_whole(corpus: Path):
    one = task("text", {"corpus": str(corpus), "held_out": 0.3})
    train, held_out = sides_of(one)
    assert numbers(train) | numbers(held_out) == {str(k).encode() for k in range(40)}
    assert not numbers(train) & numbers(held_out)
    files = {file.read_bytes() for file in corpus.rglob("*.py")}
    pieces = train.removesuffix(b"\0").split(b"\0") + held_out.removesuffix(b"\0").split(b"\0")
    assert len(pieces) == 40
    assert set(pieces) == files
    assert 3 <= len(numbers(held_out)) <= 22


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 200),
    split=st.sampled_from(("train", "held_out", "longer_2x")),
    seed=st.integers(0, 10**6),
    index=st.integers(0, 10**6),
)
def test_windows_are_stretches_of_the_splits_own_text(corpus: Path, length, split, seed, index):
    one = task("text", {"corpus": str(corpus), "length": length, "stretch": 2})
    source = text_of(one, "train" if split == "train" else "held_out")
    length *= 2 if split == "longer_2x" else 1
    batch = one.batch(split, 5, seed, index)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert len(tokens) == length
        assert bytes([*tokens, targets[-1]]) in source
        assert targets[:-1] == tokens[1:]


def test_windows_begin_everywhere(tmp_path: Path):
    (tmp_path / "letters").write_bytes(bytes(range(1, 41)) * 2)
    one = task("text", {"corpus": str(tmp_path / "letters"), "length": 3, "held_out": 0.5})
    for split, letters in (("train", range(1, 38)), ("held_out", range(14, 38))):
        starts = {row[0] for row in one.batch(split, 2000, 0, 0).tokens.tolist()}
        assert starts == set(letters), "the last one still has its next byte"


def test_a_file_keeps_its_side_when_others_come(tmp_path: Path, corpus: Path):
    for file in corpus.rglob("*.py"):
        copy = tmp_path / file.relative_to(corpus)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for k in range(100, 130):
        (tmp_path / f"more_{k}.py").write_text(f"x_{k} = 1\n")
    before = task("text", {"corpus": str(corpus)})
    after = task("text", {"corpus": str(tmp_path)})
    for split in ("train", "held_out"):
        assert numbers(text_of(before, split)) <= numbers(text_of(after, split))


def test_held_out_windows_depend_on_seed_and_index_alone(corpus: Path):
    def batch(seed: int, index: int) -> Batch:
        return task("text", {"corpus": str(corpus)}).batch("held_out", 8, seed, index)

    first = batch(1, 0)
    task("text", {"corpus": str(corpus)}).batch("train", 8, 1, 0)
    torch.manual_seed(4)
    assert torch.equal(batch(1, 0).tokens, first.tokens)
    assert not torch.equal(batch(1, 1).tokens, first.tokens)
    assert not torch.equal(batch(2, 0).tokens, first.tokens)


def test_a_link_is_no_second_file(tmp_path: Path, corpus: Path):
    for file in corpus.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for k in range(0, 40, 2):
        (tmp_path / f"link_{k}.py").symlink_to(tmp_path / f"file_{k}.py")
    one = task("text", {"corpus": str(tmp_path), "held_out": 0.4})
    train, held_out = sides_of(one)
    assert train.count(b"\0") + held_out.count(b"\0") == 20
    assert not numbers(train) & numbers(held_out)


def test_glob_chooses_the_files(tmp_path: Path):
    for k in range(20):
        (tmp_path / f"{k}.txt").write_text("words " * 30)
        (tmp_path / f"{k}.py").write_text("code " * 30)
    one = task("text", {"corpus": str(tmp_path), "glob": "*.txt", "length": 8, "held_out": 0.4})
    assert b"code" not in text_of(one, "train") + text_of(one, "held_out")


@pytest.mark.parametrize("how", ["named", "found"])
def test_a_single_file_is_cut(tmp_path: Path, how: str):
    file = tmp_path / "book.txt"
    letters = "".join(map(chr, range(1, 101))).encode() * 2
    file.write_bytes(letters)
    (tmp_path / "other.py").write_bytes(b"code")
    where = {"corpus": str(file)}
    if how == "found":
        where = {"corpus": str(tmp_path), "glob": "*.txt"}
    one = task("text", {**where, "held_out": 0.3, "length": 10})
    assert text_of(one, "train") == letters[:140]
    assert text_of(one, "validation") == letters[140:160]
    assert text_of(one, "held_out") == letters[160:]


def test_validation_is_a_third_of_what_no_training_sees_and_no_test_has_it(corpus: Path):
    one = task("text", {"corpus": str(corpus), "held_out": 0.5, "length": 10})
    train, validation = text_of(one, "train"), text_of(one, "validation")
    held_out = text_of(one, "held_out")
    assert one.validation == "validation"
    assert "validation" not in one.splits
    assert len(validation) == pytest.approx(len(held_out) / 2, abs=2)
    assert not numbers(train) & numbers(validation + held_out)
    batch = one.batch("validation", 4, 0, 0)
    assert all(bytes(row.tolist()) in validation for row in batch.tokens)


def test_the_standard_library_is_found():
    one = task("text")
    train, held_out = sides_of(one)
    assert train.count(b"\ndef ") > 1000
    assert b"\ndef " in held_out
    assert 0.02 < len(held_out) / len(train) < 0.4
    assert b"class TestCase(object):" in train + held_out, "the unittest package is no test"
    assert one.seq_len("held_out") == 256
    assert one.num_tokens == 256


def test_bytes_that_are_no_text_still_decode(corpus: Path):
    one = task("text", {"corpus": str(corpus)})
    assert one.decode([0x61, 0xC3, 0x62]) == "a\ufffdb"
    assert one.decode(one.encode("lone \ud800 surrogate")) == "lone ? surrogate"


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("corpus", {"corpus": "no/such/folder"}),
        ("corpus", {"corpus": "~nobody-of-this-name/books"}),
        ("corpus", {"corpus": 7}),
        ("glob", {"glob": "*.nothing"}),
        ("glob", {"glob": ""}),
        ("glob", {"glob": "/absolute/*.py"}),
        ("glob", {"glob": "../*/*.py"}),
        ("held_out", {"held_out": 0}),
        ("held_out", {"held_out": 1.0}),
        ("length", {"length": 0}),
        ("length", {"length": 10**6}),
        ("length", {"length": "long"}),
    ],
)
def test_bad_options_are_named(corpus: Path, option, options):
    with pytest.raises(FlagError, match=option) as caught:
        task("text", {"corpus": str(corpus), **options})
    assert caught.value.flag == option


def test_an_empty_or_short_corpus_is_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "nothing.txt").write_text("")
    for name, option in (("empty", "corpus"), ("short.txt", "length"), ("nothing.txt", "corpus")):
        with pytest.raises(FlagError) as caught:
            task("text", {"corpus": str(tmp_path / name)})
        assert caught.value.flag == option


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file.txt").write_text("x" * 1000)

    def refuse(self: Path, mode: str) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FlagError, match=r"Permission denied.*file\.txt") as caught:
        task("text", {"corpus": str(tmp_path / "file.txt")})
    assert caught.value.flag == "corpus"
