"""The registry of schemes: a name and options become a scheme."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from xcope.plugins import load_installed
from xcope.positions.base import Family, Scheme
from xcope.positions.released import Preset, presets
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

    def families(self) -> dict[Family, list[str]]:
        """Family → the names of its schemes, in order."""
        found = {one: [n for n, kind in self.items() if kind.family is one] for one in Family}
        return {family: names for family, names in found.items() if names}

    def rows(self, names: Iterable[str]) -> list[tuple[str, str, str, str, str]]:
        """(name, slot, options with defaults, formula, paper) of each scheme."""
        kinds = [(name, self[name]) for name in names]
        return [
            (
                name,
                kind.slot.value if kind.slot else "-",
                _options(kind),
                kind.formula,
                kind.paper,
            )
            for name, kind in kinds
        ]

    def __repr__(self) -> str:
        groups = {family.value: self.rows(names) for family, names in self.families().items()}
        groups["presets of released models: {preset: NAME}"] = [
            (name, "-", _options(kind), kind.title, kind.source) for name, kind in presets().items()
        ]
        head = ("scheme", "slot", "options", "formula", "paper")
        every = [head, *(row for rows in groups.values() for row in rows)]
        widths = [max(len(row[c]) for row in every) for c in range(len(head))]

        def line(row: Sequence[str]) -> str:
            return "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()

        blocks = ("\n".join([title, *map(line, rows)]) for title, rows in groups.items())
        return "\n\n".join([line(head), *blocks])


def _options(kind: type[Scheme] | type[Preset]) -> str:
    """``max_pos=16, …``; tuples of many numbers are cut."""
    options = (f"{o}={_short(field.default)}" for o, field in kind.options().items())
    return ", ".join(options) or "-"


def _short(value: Any) -> str:
    many = isinstance(value, tuple) and len(value) > 3
    return f"({value[0]}, {value[1]}, …)" if many else str(value)


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
    elsewhere = {"preset": presets()}
    return make(schemes(), name, options, flag="position", noun="scheme", elsewhere=elsewhere)
