"""The page of the API: the public names of each package, what they are, where they are written.

The site shows their docstrings, too (mkdocstrings), at the marks that are left for docs/hooks.py.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from xcope.markdown import page, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "xcope",
    "xcope.ops.cope",
    "xcope.ops.biased",
    "xcope.positions",
    "xcope.modules",
    "xcope.tasks",
    "xcope.config",
    "xcope.training",
    "xcope.inspect",
    "xcope.compare",
)


def api_page() -> str:
    """The Markdown of ``api.md``."""
    shown: set[str] = set()
    return page(
        [
            "# API",
            "What is public: the names that each package lists in its `__all__`. Shapes are "
            "written `(b h n d)`: batch, heads, tokens, width of a head. Names link to where they "
            "are written; on the site their docstrings stand below each table.",
            *(block for package in PACKAGES for block in _package(package, shown)),
        ]
    )


def _package(name: str, shown: set[str]) -> Iterator[str]:
    """Blocks of a package; what is ``shown`` already is in the table alone."""
    package = importlib.import_module(name)
    members = dict(_members(package))
    yield f"## `{name}`"
    yield _first_line(package)
    yield table(
        ("name", "is"),
        [(f"[`{public}`]({_source(one)})", _first_line(one)) for public, one in members.items()],
    )
    paths = [f"{one.__module__}.{one.__qualname__}" for one in members.values()]
    yield "\n\n".join(f"<!-- ::: {path} -->" for path in paths if path not in shown)
    shown.update(paths)


def _members(package: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a package lists, but those that an earlier package has."""
    for public in package.__all__:
        one = getattr(package, public)
        if (inspect.isclass(one) or inspect.isfunction(one)) and one.__module__.startswith("xcope"):
            yield public, one


def _source(one: Any) -> str:
    file = Path(inspect.getsourcefile(inspect.unwrap(one)) or "").resolve()
    return f"../{file.relative_to(ROOT).as_posix()}"


def _first_line(one: Any) -> str:
    doc = inspect.cleandoc(vars(one).get("__doc__") or one.__doc__ or "")
    return " ".join(doc.partition("\n\n")[0].split()).replace("``", "`")
