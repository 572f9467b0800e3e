"""What a shell completes: configs, keys and their values, schemes and tasks."""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    shell_complete,
)

from xcope.cli import _show

KINDS = {"model.position": "schemes", "task": "tasks", "task.name": "tasks", "baseline": "schemes"}
"""Keys whose values are names of what is registered."""


class ConfigType(click.ParamType):  # type: ignore[type-arg]
    """A YAML file, here or among those that come with xcope."""

    name = "config"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files by the shell; ``configs/…`` from here, by ourselves."""
        from xcope.config.compose import LIBRARY

        if os.path.isdir("configs") or not "configs/".startswith(incomplete[:8]):
            return [CompletionItem(incomplete, type="file")]
        if not incomplete.startswith("configs/"):
            folders = [f"{one.name}/" for one in Path().iterdir() if one.is_dir()]
            here = sorted([*folders, *(one.name for one in Path().glob("*.yaml"))])
            found = [name for name in here if name.startswith(incomplete)]
            return [CompletionItem(name) for name in ["configs/", *found]]
        files = sorted(file.relative_to(LIBRARY) for file in LIBRARY.rglob("*.yaml"))
        names = [f"configs/{file.as_posix()}" for file in files]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class OverrideType(click.ParamType):  # type: ignore[type-arg]
    """``key=value``."""

    name = "override"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Keys, and after ``=`` the values of those that have few."""
        key, equals, value = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{one}=") for one in keys() if one.startswith(key)]
        return [CompletionItem(f"{key}={one}") for one in values(key) if str(one).startswith(value)]


class RegisteredType(click.ParamType):  # type: ignore[type-arg]
    """The name of a scheme, a preset or a task.

    Args:
        kinds: ``schemes``, ``presets`` or ``tasks``.
    """

    name = "name"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names, with titles where the shell shows them."""
        known = _show.registered()
        return [
            CompletionItem(name, help=one["title"])
            for kind in self.kinds
            for name, one in known[kind].items()
            if name.startswith(incomplete)
        ]


CONFIG, OVERRIDE = ConfigType(), OverrideType()


def keys() -> Iterator[str]:
    """Every key that an override may set, those of all tasks among them."""
    from xcope.config.schema import SECTIONS, known_keys

    yield from (key for key in known_keys() if key not in SECTIONS)
    yield "task"
    for section in SECTIONS:
        yield from (f"{section}.{key}" for key in sorted(known_keys(section)))
    options = {option for one in _show.registered()["tasks"].values() for option in one["options"]}
    yield from (f"task.{option}" for option in sorted(options))


def values(key: str) -> list[str]:
    """The values that a key may have, if they are few and known."""
    if key in KINDS:
        return list(_show.registered()[KINDS[key]])
    from xcope.config.schema import SECTIONS

    section, _, name = key.partition(".")
    field = SECTIONS[section].model_fields.get(name) if section in SECTIONS else None
    if field is not None:
        return [*words(field.annotation)]
    tasks = _show.registered()["tasks"].values()
    options = [
        one["options"][name] for one in tasks if section == "task" and name in one["options"]
    ]
    return ["true", "false"] if any(option["type"] == "bool" for option in options) else []


def words(annotation: Any) -> Iterator[str]:
    """The words that an annotation allows."""
    if annotation is bool:
        yield from ("true", "false")
    for one in typing.get_args(annotation):
        if isinstance(one, str):
            yield one
        else:
            yield from words(one)


@add_completion_class
class Bash(BashComplete):
    """bash takes ``=`` for the end of a word; here ``key=value`` is one."""

    source_template = BashComplete.source_template.replace(
        "return 0", "[[ ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace\n    return 0", 1
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is completed, and that one from its beginning."""
        args, incomplete = super().get_completion_args()
        if incomplete == "=":
            args, incomplete = [*args, "="], ""
        while len(args) >= 2 and args[-1] == "=" and not args[-2].startswith("-"):
            incomplete = f"{args[-2]}={incomplete}"
            args = args[:-2]
        return args, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """What takes the place of the last word as bash sees it."""
        value = item.value.partition("=")[2] if item.type == "plain" else ""
        return f"{item.type},{value or item.value}"


def source(shell: str) -> str:
    """The code that a shell evaluates."""
    from xcope.cli import xcope

    kind: Any = get_completion_class(shell)
    return str(kind(xcope, {}, "xcope", VARIABLE).source())


def complete(instruction: str) -> int:
    """Print what a shell's code asked for; returns the exit code."""
    from xcope.cli import xcope

    return shell_complete(xcope, {}, "xcope", VARIABLE, instruction)


VARIABLE = "_XCOPE_COMPLETE"
"""By which the shell's code asks for completions."""
