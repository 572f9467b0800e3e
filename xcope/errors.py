"""Errors for people: what was given, what is allowed, and the nearest valid name."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


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
