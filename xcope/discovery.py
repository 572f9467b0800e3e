"""Finding the files of a package that register themselves: a new scheme or task is one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence


def discover(package: str, path: Sequence[str]) -> None:
    """Import every module of the package, so that what is in it registers itself.

    Args:
        package: its ``__name__``.
        path: its ``__path__``.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
