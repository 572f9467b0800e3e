"""The error that a config's author reads: where, which key, what was given, what is allowed.

Also the words for it: types and values as they stand in a sentence.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from xcope.errors import ToldError, did_you_mean, listing

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Mark:
    """Where a key was written: a file and a line (counted from 1), or no file at all.

    Args:
        source: a file's path as a person would type it, ``"command line"`` or ``"config"`` (a
            mapping made in Python).
        line: None where lines mean nothing.
    """

    source: str
    line: int | None = None

    @property
    def folder(self) -> str:
        """Where relative paths that were written here begin: the file's folder, or that of work."""
        return os.path.dirname(self.source) or "." if self.line is not None else "."

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


COMMAND_LINE = Mark("command line")


class ConfigError(ToldError):
    """A config that cannot be used.

    ``str(error)`` is one line: ``configs/x.yaml:12: model.positon: unknown key 'positon'; …``.

    Args:
        message: what was given and what is allowed.
        key: dotted path of the key, empty where the file as a whole is meant.
        mark: where it was written.
    """

    def __init__(self, message: str, key: str = "", mark: Mark | None = None) -> None:
        super().__init__(message, key, mark)
        self.message = " ".join(message.split())
        self.key = key
        self.mark = mark

    @property
    def file(self) -> str | None:
        """The file (or ``"command line"``) to look into."""
        return self.mark.source if self.mark else None

    @property
    def line(self) -> int | None:
        """The line of the key in `file`, counted from 1."""
        return self.mark.line if self.mark else None

    def __str__(self) -> str:
        where = [str(self.mark)] if self.mark else []
        return ": ".join([*where, *([self.key] if self.key else []), self.message])


Path = tuple[str | int, ...]
"""Keys and list indices from the root of a config: ``("model", "position", 0, "name")``."""


def dotted(path: Path) -> str:
    """``model.position[0].name``: a path as people write it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list of values",
    type(None): "null",
}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Worded:
    """In an annotation: the words for a type that is hard to read."""

    words: str


def expected(kind: Any, constraints: Sequence[Any] = ()) -> str:
    """``a whole number of at least 1``: the values that an annotation allows."""
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    if isinstance(kind, FieldInfo):
        return expected(kind.annotation, kind.metadata)
    for one in constraints:
        if isinstance(one, Worded):
            return one.words
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return expected(inner[0], [c for outer in inner[1:] for c in _constraints(outer)])
    if origin in _COMPOSITES:
        return _COMPOSITES[origin](inner)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a mapping of keys and values"
    limits = [
        f"{word} {getattr(one, name):g}"
        for one in constraints
        for name, word in _BOUNDS.items()
        if hasattr(one, name)
    ]
    return " ".join([_WORDS[origin or kind], " and ".join(limits)]).strip()


def _either(kinds: Sequence[Any]) -> str:
    return " or ".join(expected(one) for one in kinds)


_COMPOSITES: dict[Any, Callable[[Sequence[Any]], str]] = {
    Literal: lambda words: f"one of {listing(words)}",
    Union: _either,
    types.UnionType: _either,
    tuple: lambda kinds: f"a list of {len(kinds)}, each {expected(kinds[0])}",
}


def _constraints(metadata: Any) -> Sequence[Any]:
    from pydantic.fields import FieldInfo

    return metadata.metadata if isinstance(metadata, FieldInfo) else [metadata]


def near_choice(given: Any, kind: FieldInfo) -> str:
    """``; did you mean 'bf16'?`` where one of several words is expected."""
    choices = typing.get_args(getattr(kind, "annotation", None))
    words = [choice for choice in choices if isinstance(choice, str)]
    return did_you_mean(given, words) if isinstance(given, str) else ""


def quotes_needed(written: str, wanted: str) -> str:
    """``; a text that looks like another value needs quotes: '08'``, where one lacks them."""
    if not written or not re.search(r"\btext\b", wanted):
        return ""
    return f"; a text that looks like another value needs quotes: '{written}'"


def shown(value: Any, longest: int = 60) -> str:
    """The value as its author wrote it, cut where it is long."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"
