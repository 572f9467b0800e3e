"""The registry of schemes: how a name, a mapping or a list becomes schemes with their options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from xcope.errors import FlagError, did_you_mean, listing
from xcope.positions.base import Scheme

Position: TypeAlias = str | Mapping[str, Any] | Scheme | Sequence[str | Mapping[str, Any] | Scheme]
"""``"cope"``, ``{"name": "cope", "max_pos": 64}``, a `Scheme`, or a list of these."""

S = TypeVar("S", bound=type[Scheme])
_SCHEMES: dict[str, type[Scheme]] = {}


def register(scheme: S) -> S:
    """Class decorator: list the scheme under its name."""
    if scheme.name in _SCHEMES:
        raise ValueError(f"two schemes are called {scheme.name!r}")
    _SCHEMES[scheme.name] = scheme
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
    """Every registered scheme by name."""
    return SchemeTable(_SCHEMES)


def scheme(name: str, options: Mapping[str, Any] | None = None) -> Scheme:
    """The scheme called ``name`` with ``options``.

    Raises:
        FlagError: an unknown name (flag ``position``) or option (flag ``<name>_<option>``), with
            the nearest valid one; an option whose value is not allowed.
    """
    if name not in _SCHEMES:
        raise FlagError(
            "position",
            f"position={name!r} is not a scheme: choose among {listing(schemes())}"
            f"{did_you_mean(name, _SCHEMES)}",
        )
    kind = _SCHEMES[name]
    for option in options or {}:
        if option not in kind.options():
            raise FlagError(
                f"{name}_{option}",
                f"position {name!r} has no option {option!r}: it takes "
                f"{listing(kind.options())}{did_you_mean(option, kind.options())}",
            )
    return kind(**(options or {}))


def parse(position: Position) -> tuple[Scheme, ...]:
    """Schemes from a name, a mapping with ``name`` and options, a scheme, or a list of these.

    Raises:
        FlagError: as `scheme`; two schemes for one slot; ``none`` beside another; a mapping
            without a name.
    """
    entries = position if isinstance(position, list | tuple) else [position]
    if not entries:
        raise FlagError("position", "position=[] names no scheme: write position='none' for none")
    chosen = tuple(_parse_one(entry) for entry in entries)
    check_together(chosen)
    return chosen


def _parse_one(entry: object) -> Scheme:
    if isinstance(entry, Scheme):
        return entry
    if isinstance(entry, str):
        return scheme(entry)
    if isinstance(entry, Mapping):
        options = dict(entry)
        name = options.pop("name", None)
        if isinstance(name, str):
            return scheme(name, options)
        raise FlagError(
            "position",
            f"position={entry!r} lacks 'name': write for instance {{name: cope, max_pos: 64}}",
        )
    raise FlagError(
        "position",
        f"position={entry!r} is neither a scheme's name nor a mapping with name and options: "
        f"choose among {listing(schemes())}",
    )


def expand(chosen: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """Combinations replaced by their parts."""
    return tuple(part for one in chosen for part in one.parts())


def check_together(chosen: Sequence[Scheme]) -> None:
    """Refuse two schemes for one slot, and ``none`` beside another.

    Raises:
        FlagError: names both schemes and what to change.
    """
    taken: dict[object, Scheme] = {}
    for part in expand(chosen):
        if part.slot is None:
            if len(chosen) > 1:
                others = listing(o.name for o in chosen if o is not part)
                raise FlagError(
                    "position",
                    f"position {part.name!r} means no position at all, but {others} stands "
                    "beside it: drop one",
                )
            continue
        if part.slot in taken:
            raise FlagError(
                "position",
                f"two schemes at once: {taken[part.slot].name!r} and {part.name!r} both fill the "
                f"{part.slot.value} slot: keep one of them",
            )
        taken[part.slot] = part
