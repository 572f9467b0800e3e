"""Tokens have names that can be seen, and that no page takes for markup."""

import pytest

from xcope.inspect import token_labels
from xcope.inspect.labels import visible
from xcope.tasks import task


def test_bytes(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("x" * 1000)
    text = task("text", {"corpus": str(corpus), "length": 8})
    ids = text.encode("a é\n\0")
    assert token_labels(text, ids) == ("a", " ", "é", "·", "\n", "\0")


@pytest.mark.parametrize(
    ("raw", "labels"),
    [
        ("中x".encode(), ["中", "·", "·", "x"]),
        ("😀é".encode(), ["😀", "·", "·", "·", "é", "·"]),
        (b"\xff\xfea", ["\\xff", "\\xfe", "a"]),
        ("中".encode()[:2] + b"a", ["\\xe4", "\\xb8", "a"]),  # cut off
        ("中".encode()[1:] + "é".encode(), ["\\xb8", "\\xad", "é", "·"]),
        (b"\xc3" * 20 + "é".encode(), ["\\xc3"] * 20 + ["é", "·"]),
        ("\ufffd!".encode(), ["\ufffd", "·", "·", "!"]),  # a character of its own
        ("e\u0301".encode(), ["e", "\u0301", "·"]),
    ],
)
def test_the_first_byte_of_a_character_shows_it(raw, labels):
    assert token_labels(task("text", {}, data=False), list(raw)) == tuple(labels)


class Pieces:
    """A task whose tokens are the pieces of a tokenizer of bytes, as byte-level BPE makes them."""

    num_tokens = 1000

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, tokens):
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")

    def encode(self, text):
        raise AssertionError("not needed")


@pytest.mark.parametrize(
    ("pieces", "labels"),
    [
        ((b"caf\xc3", b"\xa9 b"), ["café", "· b"]),
        ((b" \xe4", b"\xb8", b"\xad\xe6", b"\x96\x87!"), [" 中", "·", "·文", "·!"]),
        (("日本".encode(), b"\xe8\xaa", b"\x9e"), ["日本", "語", "·"]),
        ((b"a", b"b\xff"), ["a", "b\ufffd"]),
    ],
)
def test_a_token_that_is_part_of_a_character_of_any_tokenizer(pieces, labels):
    assert token_labels(Pieces(*pieces), range(len(pieces))) == tuple(labels)
    assert "".join(labels).replace("·", "") == b"".join(pieces).decode(errors="replace")


def test_words():
    counting = task("counting", {})
    assert token_labels(counting, counting.encode("a=0 pass a++")) == ("a=0", "pass", "a++")


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("a++", "a++"),
        ("", "·"),
        (" ", "␣"),
        ("\n", "↵"),
        ("\t\r\0", "⇥␍␀"),
        ("\a", "\\x07"),
        ("\u202e", "\\u202e"),  # would turn the text around it
        ("\u200b", "\\u200b"),
        ("<b>&", "<b>&"),
        ("é字", "é字"),
    ],
)
def test_everything_is_visible(label, shown):
    assert visible(label) == shown
