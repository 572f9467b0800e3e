"""Packages whose names are imported when they are first used, as PEP 562 has it: torch takes
seconds, and whoever misspells a key need not wait for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def names(
    package: str, homes: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        homes: module → what the package has from it.
        submodules: those that are attributes as soon as they are asked for.
    """
    home = {name: module for module, inside in homes.items() for name in inside}

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
