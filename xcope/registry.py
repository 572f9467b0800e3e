"""What schemes and tasks share: each is a class in a file of its own, found by its name.

Its options are dataclass fields. A wrong name, a wrong option or a wrong value is a `FlagError`
with the nearest right one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from xcope.errors import FlagError, did_you_mean, listing


class Named:
    """A dataclass with a name, whose fields are options."""

    name: ClassVar[str]

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Option name → dataclass field (type, default)."""
        return {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def annotations(cls) -> Mapping[str, Any]:
        """Option → its annotation, with what it says besides the type (`xcope.files.IsPath`)."""
        found = typing.get_type_hints(cls, include_extras=True)
        return {option: found[option] for option in cls.options()}

    @classmethod
    def flag(cls, option: str) -> str:
        """The flag by which errors name an option."""
        return option

    def require(self, ok: bool, option: str, allowed: str) -> None:
        """Raise an error that names the option's flag unless ``ok``."""
        if not ok:
            flag, value = self.flag(option), getattr(self, option)
            raise FlagError(flag, f"{flag}={value!r} is not allowed: {allowed}")


N = TypeVar("N", bound=Named)


def add(kinds: dict[str, type[N]], kind: type[N], noun: str) -> None:
    """List a class among ``kinds`` under its name; ``noun`` is the word for them in an error."""
    if kind.name in kinds:
        raise ValueError(f"two {noun}s are called {kind.name!r}")
    kinds[kind.name] = kind


def make(
    kinds: Mapping[str, type[N]],
    name: str,
    options: Mapping[str, Any] | None,
    *,
    flag: str,
    noun: str,
) -> N:
    """The one of ``kinds`` that is called ``name``, with ``options``.

    Args:
        flag: the flag whose value ``name`` is.
        noun: the word for the kinds in an error.

    Raises:
        FlagError: an unknown name or option, with the nearest valid one; an option whose value is
            not allowed.
    """
    if name not in kinds:
        raise FlagError(
            flag,
            f"{flag}={name!r} is not a {noun}: choose among {listing(sorted(kinds))}"
            f"{did_you_mean(name, kinds)}",
        )
    kind = kinds[name]
    known = kind.options()
    for option in options or {}:
        if option not in known:
            raise FlagError(
                kind.flag(option),
                f"{flag} {name!r} has no option {option!r}: it takes {listing(known)}"
                f"{did_you_mean(str(option), known)}",
            )
    return kind(**(options or {}))


def discover(package: str, path: Sequence[str]) -> None:
    """Import every module of a package, so that the classes in it are listed.

    Args:
        package: its ``__name__``.
        path: its ``__path__``.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


@functools.cache
def hints(kind: type) -> Mapping[str, Any]:
    """Option → the type that its annotation names."""
    return typing.get_type_hints(kind)


def is_a(value: object, hint: Any) -> bool:
    """Whether ``value`` is what the annotation says; ints serve as floats, bools do not."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(is_a(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        of = typing.get_args(hint)[0]
        return isinstance(value, list) and all(is_a(item, of) for item in value)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict)
    if typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)[0]
        return isinstance(value, tuple | list) and all(is_a(item, of) for item in value)
    if hint in (int, float):
        number = int if hint is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, hint)
