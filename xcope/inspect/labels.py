"""How tokens are called, and how these names are shown where nothing may stay invisible."""

from __future__ import annotations

from collections.abc import Sequence

from xcope.tasks import Task

SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\0": "␀"}
"""Of characters that are common in text and leave nothing to see."""


def token_labels(task: Task, ids: Sequence[int]) -> tuple[str, ...]:
    r"""Each token on its own, as its task reads it; a byte that is no character is ``\xc3``."""
    texts = ((token, task.decode([token])) for token in map(int, ids))
    return tuple(f"\\x{token:02x}" if "\ufffd" in text else text for token, text in texts)


def visible(label: str) -> str:
    r"""The label with a sign for each space and line break, and ``\x07`` for what has none.

    An empty label becomes ``·``.
    """
    return "".join(map(_visible, label)) or "·"


def _visible(letter: str) -> str:
    if letter in SIGNS:
        return SIGNS[letter]
    if letter.isprintable():
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode()
