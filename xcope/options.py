"""Options as dataclass fields: whether a value is what the annotation says."""

from __future__ import annotations

import types
import typing
from typing import Any


def is_a(value: object, hint: Any) -> bool:
    """Whether ``value`` is what the annotation says; ints serve as floats, bools do not."""
    if isinstance(hint, types.UnionType):
        return any(is_a(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)[0]
        return isinstance(value, tuple | list) and all(is_a(item, of) for item in value)
    if hint in (int, float):
        number = int if hint is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, hint)
