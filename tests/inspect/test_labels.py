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
    assert token_labels(text, ids) == ("a", " ", "\\xc3", "\\xa9", "\n", "\0")


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
