"""The registry of schemes: a name and options become a scheme."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from xcope.plugins import load_installed
from xcope.positions.base import Scheme
from xcope.registry import add, make

S = TypeVar("S", bound=type[Scheme])
_SCHEMES: dict[str, type[Scheme]] = {}


def register(scheme: S) -> S:
    """Class decorator: list the scheme under its name."""
    add(_SCHEMES, scheme.name, scheme, "scheme")
    return scheme


class SchemeTable(Mapping[str, type[Scheme]]):
    """Name → scheme class; printed, it is a table for people."""

    def __init__(self, schemes: Mapping[str, type[Scheme]]) -> None:
        self._schemes = dict(sorted(schemes.items()))

    def __getitem__(self, name: str) -> type[Scheme]:
        return self._schemes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._schemes)

    def __len__(self) -> int:
        return len(self._schemes)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """(name, slot, options with defaults, formula, paper) of each scheme."""
        return [
            (
                name,
                scheme.slot.value if scheme.slot else "-",
                ", ".join(f"{o}={f.default}" for o, f in scheme.options().items()) or "-",
                scheme.formula,
                scheme.paper,
            )
            for name, scheme in self._schemes.items()
        ]

    def __repr__(self) -> str:
        rows = [("scheme", "slot", "options", "formula", "paper"), *self.rows()]
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def schemes() -> SchemeTable:
    """Every registered scheme by name, with those that installed packages announce."""
    load_installed()
    return SchemeTable(_SCHEMES)


def scheme(name: str, options: Mapping[str, Any] | None = None) -> Scheme:
    """The scheme called ``name`` with ``options``.

    Raises:
        FlagError: an unknown name (flag ``position``) or option (flag ``<name>_<option>``), with
            the nearest valid one; an option whose value is not allowed.
    """
    return make(schemes(), name, options, flag="position", noun="scheme")
