"""What the files of schemes say of themselves: their docstrings, and what options mean."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap

from xcope.positions import Scheme

ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


def linked(text: str) -> str:
    """The text with its arXiv numbers as links."""
    return ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", text)


def described(kind: type[Scheme]) -> str:
    """The docstring of the scheme's file as Markdown: paragraphs, and formulas as code."""
    doc = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    return "\n\n".join(map(_block, _blocks(doc)))


def _blocks(doc: str) -> list[str]:
    """Paragraphs and indented blocks; blocks that only empty lines part are one."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", doc):
        if blocks and block.startswith("    ") and blocks[-1].startswith("    "):
            blocks[-1] += "\n\n" + block
        else:
            blocks.append(block)
    return blocks


def _block(block: str) -> str:
    if block.startswith("    "):
        return f"```text\n{textwrap.dedent(block)}\n```"
    return linked(block.replace("``", "`"))


def meanings(kind: type[Scheme]) -> dict[str, str]:
    """Option → its line under ``Args``; the scheme's own options, then the inherited ones."""
    found: dict[str, str] = {}
    for cls in kind.__mro__:
        if issubclass(cls, Scheme):
            found = found | {k: v for k, v in arguments(cls).items() if k not in found}
    return {option: text for option, text in found.items() if option in kind.options()}


def arguments(cls: type) -> dict[str, str]:
    """The names under ``Args:`` of a class's own docstring → what stands beside them."""
    _, _, args = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("Args:\n")
    args = re.split(r"\n(?=\S)", args)[0]
    entries = re.split(r"^    (?=\w+: )", args, flags=re.MULTILINE)[1:]
    pairs = (entry.split(": ", 1) for entry in entries)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in pairs}
