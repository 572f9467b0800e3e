"""How tokens are called, and how these names are shown where nothing may stay invisible."""

from __future__ import annotations

from collections.abc import Sequence

from xcope.tasks import Task

SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\0": "␀"}
"""Of characters that are common in text and leave nothing to see."""


BROKEN = "\ufffd"
"""What decoding makes of bytes that are no character."""
REST = "·"
"""The label of a token that only ends a character which an earlier token began."""
TOGETHER = 16
"""The most tokens that are read together to find characters which they share."""


def token_labels(task: Task, ids: Sequence[int]) -> tuple[str, ...]:
    r"""Each token as its task reads it.

    Where several tokens share a character, the first shows it, and the next begins with `REST`. A
    byte that belongs to no character is ``\xc3``.
    """
    tokens, labels = [*map(int, ids)], list[str]()
    while len(labels) < len(tokens):
        labels += _next_labels(task, tokens[len(labels) :][:TOGETHER])
    return tuple(labels)


def _next_labels(task: Task, tokens: list[int]) -> list[str]:
    """The labels of the first token, and of those that share characters with it."""
    alone = task.decode(tokens[:1])
    if BROKEN not in alone:
        return [alone]
    for n in range(2, len(tokens) + 1):
        text = task.decode(tokens[:n])
        if BROKEN not in text or (text == BROKEN and task.encode(text) == tokens[:n]):
            return _shared(text, [task.decode(tokens[:i]) for i in range(n)])
    return [f"\\x{tokens[0]:02x}" if task.num_tokens <= 256 else alone]


def _shared(text: str, before: list[str]) -> list[str]:
    """The labels of tokens that are a text only together: what begins in each of them.

    Args:
        before: what those before each token are; a character that is not whole yet is `BROKEN`,
            and so one letter too.
    """
    ends = [*map(len, before[1:]), len(text)]
    return [
        (REST if part.endswith(BROKEN) else "") + text[len(part) : end]
        for part, end in zip(before, ends, strict=True)
    ]


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
