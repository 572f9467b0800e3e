"""Packages whose names are imported when they are first used, as PEP 562 has it: torch takes
seconds, and whoever misspells a key need not wait for it.

What a package has is what its file imports under ``if TYPE_CHECKING:``, as type checkers see it.
"""

from __future__ import annotations

import ast
import gc
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def names(
    package: str, file: str, submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        file: its ``__file__``.
        submodules: those that are attributes as soon as they are asked for.
    """
    home: dict[str, str] = {}
    for statement in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If):
            for one in statement.body:
                if isinstance(one, ast.ImportFrom) and one.module:
                    home |= {alias.name: one.module for alias in one.names}

    def get(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(home[name]), name)
        vars(importlib.import_module(package))[name] = found  # it is asked for once
        return found

    def listed() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *home, *submodules})

    return get, listed


@contextmanager
def importing() -> Iterator[None]:
    """Context for imports of much code: Python does not look for garbage, of which there is none
    and which takes a quarter of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
