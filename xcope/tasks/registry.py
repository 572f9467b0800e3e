"""The registry of tasks: how a name and a mapping of options become a task."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from xcope.plugins import load_installed
from xcope.registry import add, make
from xcope.tasks.base import Task

T = TypeVar("T", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def register(task: T) -> T:
    """Class decorator: list the task under its name."""
    add(_TASKS, task.name, task, "task")
    return task


def tasks() -> Mapping[str, type[Task]]:
    """Every registered task's class by name, in alphabetical order, with those that installed
    packages announce."""
    load_installed()
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
    made = make(tasks(), name, options, flag="task", noun="task")
    if data:
        made.check_data()
    return made
