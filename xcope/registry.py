"""What can be registered under a name, and by whom: schemes, tasks, metrics, columns.

A scheme and a task is a class in a file of its own, whose options are dataclass fields. A wrong
name, a wrong option or a wrong value is a `FlagError` with the nearest right one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from xcope.errors import FlagError, did_you_mean, listing
from xcope.files import IsPath


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
    def paths(cls) -> dict[str, IsPath]:
        """The options that are paths."""
        kinds = {option: IsPath.of(kind) for option, kind in cls.annotations().items()}
        return {option: kind for option, kind in kinds.items() if kind is not None}

    @classmethod
    def flag(cls, option: str) -> str:
        """The flag by which errors name an option."""
        return option

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {
            name: getattr(self, name)
            for name, field in self.options().items()
            if getattr(self, name) != field.default
        }

    def label(self) -> str:
        """``cope``, or ``cope(max_pos=64)`` where options differ from their defaults."""
        given = ", ".join(f"{name}={value}" for name, value in self.given().items())
        return f"{self.name}({given})" if given else self.name

    def check_types(self) -> None:
        """Refuse values of the wrong type; lists, as YAML has them, become tuples.

        Raises:
            FlagError: names the flag and the type.
        """
        known: Any = hints(type(self))  # type: ignore[arg-type]
        for option in self.options():
            value = getattr(self, option)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, option, value)
            hint = known[option]
            if not is_a(value, hint):
                flag = self.flag(option)
                plain = typing.get_origin(hint) is None
                wanted = getattr(hint, "__name__", str(hint)) if plain else str(hint)
                raise FlagError(flag, f"{flag}={value!r} is not of type {wanted}")

    def require(self, ok: bool, option: str, allowed: str) -> None:
        """Raise an error that names the option's flag unless ``ok``."""
        if not ok:
            flag, value = self.flag(option), repr(getattr(self, option))
            value = value if len(value) <= 80 else f"{value[:40]}…{value[-9:]}"
            raise FlagError(flag, f"{flag}={value} is not allowed: {allowed}")

    def require_among(self, option: str, words: Collection[str]) -> None:
        """`require` that an option is one of these words; names the nearest."""
        value = getattr(self, option)
        near = did_you_mean(value, words)
        self.require(value in words, option, f"choose among {listing(words)}{near}")


N = TypeVar("N", bound=Named)


@dataclass(frozen=True)
class _Origin:
    """Who registered something.

    Args:
        module: the file of the module, or its name where it has none.
        line: where ``register`` stands, as ``file:line``.
    """

    module: str
    line: str

    @classmethod
    def of(cls, frame: types.FrameType) -> _Origin:
        """The module that the frame belongs to."""
        names = frame.f_globals
        # a plugin is the same one wherever a copy of its file lies; cells of a notebook are one
        module = names.get("__plugin__") or (
            names["__name__"] if names["__name__"] == "__main__" else names.get("__file__")
        )
        file = os.path.relpath(frame.f_code.co_filename)
        file = frame.f_code.co_filename if file.startswith("..") else file
        return cls(str(module or names["__name__"]), f"{file}:{frame.f_lineno}")


_ORIGINS: dict[tuple[str, str], _Origin] = {}
_journals: list[list[tuple[dict[str, Any], str, Any]]] = []


def add(kinds: dict[str, Any], name: str, one: Any, noun: str) -> None:
    """List something among ``kinds`` under its name, for the module that called ``register``.

    A module that runs again (imported under a second name, reloaded, a cell of a notebook) replaces
    what it registered before.

    Args:
        noun: the word for the kinds in an error.

    Raises:
        FlagError: another module has registered one of this name.
    """
    origin = _Origin.of(sys._getframe(2))
    before = _ORIGINS.get((noun, name))
    if name in kinds and (before is None or before.module != origin.module):
        first = f" (the first: {before.line})" if before else ""
        raise FlagError(noun, f"two {noun}s are called {name!r}{first}: rename one of them")
    for journal in _journals:
        journal.append((kinds, name, kinds.get(name)))
    kinds[name] = one
    _ORIGINS[noun, name] = origin


@contextmanager
def undone_if_it_fails() -> Iterator[None]:
    """Context after which, if an error ends it, nothing is registered that was not before."""
    journal: list[tuple[dict[str, Any], str, Any]] = []
    _journals.append(journal)
    try:
        yield
    except BaseException:
        for kinds, name, before in reversed(journal):
            if before is None:
                del kinds[name]
            else:
                kinds[name] = before
        raise
    finally:
        _journals.remove(journal)


def make(
    kinds: Mapping[str, type[N]],
    name: str,
    options: Mapping[str, Any] | None,
    *,
    flag: str,
    noun: str,
    elsewhere: Mapping[str, Collection[str]] | None = None,
) -> N:
    """The one of ``kinds`` that is called ``name``, with ``options``.

    Args:
        flag: the flag whose value ``name`` is.
        noun: the word for the kinds in an error.
        elsewhere: see `check_named`.

    Raises:
        FlagError: an unknown name or option, with the nearest valid one; an option whose value is
            not allowed.
    """
    check_named(
        {one: kind.options() for one, kind in kinds.items()},
        name,
        options,
        flag=flag,
        noun=noun,
        spelled=lambda option: kinds[name].flag(option),  # noqa: PLW0108, the name may be wrong
        elsewhere=elsewhere,
    )
    return kinds[name](**(options or {}))


def check_named(
    known: Mapping[str, Collection[str]],
    name: str,
    options: Mapping[str, Any] | None,
    *,
    flag: str,
    noun: str,
    spelled: Callable[[str], str],
    elsewhere: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Refuse a name that is not known, or an option that what it names does not have.

    Args:
        known: name → its options.
        spelled: an option as a flag.
        elsewhere: key → the names of another kind, which stand under it instead.

    Raises:
        FlagError: see `make`.
    """
    if name not in known:
        others = elsewhere or {}
        key = next((key for key, names in others.items() if name in names), None)
        near = did_you_mean(name, known) if key is None else f"; write {{{key}: {name}}}"
        raise FlagError(
            flag,
            f"{flag}={name!r} is not a {noun}: choose among {listing(sorted(known))}{near}",
        )
    for option in options or {}:
        if option not in known[name]:
            raise FlagError(
                spelled(option),
                f"{flag} {name!r} has no option {option!r}: it takes {listing(known[name])}"
                f"{did_you_mean(str(option), known[name])}",
            )


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
