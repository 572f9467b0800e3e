"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, centred: bool = False) -> str:
    """A table; with ``centred`` all columns but the first two are."""
    rules = ["---"] * len(head)
    if centred:
        rules[2:] = [":-:"] * (len(head) - 2)
    cells = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, rules, *rows)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def code(text: str) -> str:
    """Text as code."""
    return f"`{text}`"


def listed(names: Iterable[str]) -> str:
    """``a, b``, or a dash for none."""
    return ", ".join(names) or "–"


def page(blocks: Iterable[str]) -> str:
    """The blocks that are not empty, as the text of a file."""
    return "\n\n".join(block for block in blocks if block) + "\n"
