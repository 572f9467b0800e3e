"""The registry of tasks: how a name and a mapping of options become a task."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from xcope.errors import FlagError, did_you_mean, listing
from xcope.tasks.base import Task

T = TypeVar("T", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def register(task: T) -> T:
    """Class decorator: list the task under its name."""
    if task.name in _TASKS:
        raise ValueError(f"two tasks are called {task.name!r}")
    _TASKS[task.name] = task
    return task


def tasks() -> Mapping[str, type[Task]]:
    """Every registered task's class by name, in alphabetical order."""
    return MappingProxyType(dict(sorted(_TASKS.items())))


def task(name: str, options: Mapping[str, Any] | None = None, *, data: bool = True) -> Task:
    """The task called ``name`` with ``options``.

    Args:
        data: read what it is drawn from; without, that is done when the first batch is.

    Raises:
        FlagError: an unknown name (flag ``task``) or option (flag: the option), with the nearest
            valid one; an option whose type or value is not allowed, or data that do not
            suffice (flag: the option).
    """
    if name not in _TASKS:
        raise FlagError(
            "task",
            f"task={name!r} is not a task: choose among {listing(tasks())}"
            f"{did_you_mean(name, _TASKS)}",
        )
    kind = _TASKS[name]
    for option in options or {}:
        if option not in kind.options():
            raise FlagError(
                option,
                f"task {name!r} has no option {option!r}: it takes {listing(kind.options())}"
                f"{did_you_mean(str(option), kind.options())}",
            )
    made = kind(**(options or {}))
    if data:
        made.check_data()
    return made
