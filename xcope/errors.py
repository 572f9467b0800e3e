"""Errors for people: what was given, what is allowed, and the nearest valid name."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from typing import ClassVar

from safetensors import SafetensorError

MEMORY_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Storage size calculation overflowed",
    "invalid size, maximum",
)
"""How PyTorch, CUDA and the system say that a tensor does not fit; they raise RuntimeError."""


class FlagError(ValueError):
    """A keyword flag, option or argument that cannot be used as given.

    Args:
        flag: the name of the flag as its user wrote it (``"cope_max_pos"``); configs map it
            back to file, line and key.
        message: one sentence or two that say what was given and what is allowed.
    """

    def __init__(self, flag: str, message: str) -> None:
        super().__init__(message)
        self.flag = flag


class ToldError(Exception):
    """An error whose words are for people: what they asked for cannot be done as it is."""

    exit_code: ClassVar[int] = 2
    """What a command that ends with this error returns to the shell."""


def told(error: Exception) -> str | None:
    """What a person reads of an error, one line or a few; None for a bug of ours."""
    text = str(error)
    if isinstance(error, ToldError | FlagError):
        return text
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in MEMORY_WORDS)
    ):
        first = text.partition("\n")[0]
        return f"there is not enough memory: smaller batches, lengths or models need less. {first}"
    if isinstance(error, OSError):
        return text or type(error).__name__
    if isinstance(error, SafetensorError):  # its own words name no file, but the reason
        return f"a file of tensors cannot be written or read: {text}"
    if isinstance(error, UnicodeError):
        return f"text that cannot be read or written as it is: {text}"
    return None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'rotary'?"`` for the nearest of ``names``, or an empty string."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def words_of(error: BaseException) -> str:
    """What the error says; without words of its own (a bare ``assert``), the line it stands on."""
    return str(error) or traceback.extract_tb(error.__traceback__)[-1].line or type(error).__name__


def listing(names: Iterable[str]) -> str:
    """``'a', 'b' and 'c'``: names as they stand in a sentence."""
    quoted = [repr(name) for name in names]
    if len(quoted) < 2:
        return "".join(quoted) or "none"
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]
