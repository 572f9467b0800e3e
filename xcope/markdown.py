"""Markdown and CSV: pieces of reports and generated pages, and tables that programs read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

RULES = {"-": "---", "l": ":--", "r": "--:", "c": ":-:"}
"""How a column is aligned → the rule under its heading; ``-`` leaves it to who shows the table."""


def escape(text: str) -> str:
    """Text that Markdown, also in a cell of a table, shows as it stands, in one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*|\[\]$~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def bold(text: str) -> str:
    """Markdown in bold."""
    return f"**{text}**"


def code(text: str) -> str:
    """Text as code, within a line."""
    marks = _longer_than_in(text, 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{pad}{text}{pad}{marks}"


def code_block(text: str, language: str = "") -> str:
    """Text as a block of code."""
    fence = _longer_than_in(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _longer_than_in(text: str, least: int) -> str:
    """More backticks than stand side by side anywhere in a text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)


def listed(texts: Iterable[str]) -> str:
    """``a, b``, or a dash for none."""
    return ", ".join(texts) or "–"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], align: str = "-") -> str:
    """A table.

    Args:
        head: the headings; they and the cells are Markdown, put in one line, and a ``|`` in them
            is escaped unless it is already.
        align: a letter of `RULES` for each column; the last one goes on for those that follow.
    """
    ended = align[-1] * (len(head) - len(align))
    rules = [RULES[letter] for letter in islice(align + ended, len(head))]
    lines = [list(map(_cell, head)), rules, *(list(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    line = " ".join(str(value).split())
    return re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", line)


def page(blocks: Iterable[str]) -> str:
    """The blocks that are not empty, as the text of a file."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def write_csv(path: Path, head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whose first line names the columns; None is an empty cell.

    A text that is not UTF-8, as a path may be, is written with backslashes.
    """
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
