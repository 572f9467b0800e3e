"""A small corpus, and every registered task in a size that tests can afford."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from xcope.tasks import Task, task

SMALL: Mapping[str, Mapping[str, Any]] = {
    "flip_flop": {"instructions": 12},
    "selective_copy": {"tokens": 5, "blanks": 7},
    "counting": {"variables": 2, "length": 12},
    "text": {"length": 20},
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty Python files in two folders; file k says its number in every line."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "inner").mkdir()
    for k in range(40):
        file = root / ("inner" if k % 2 else ".") / f"file_{k}.py"
        file.write_text("".join(f"x_{k} = {line}  # ünï\n" for line in range(20)))
    return root


@pytest.fixture
def small_task(corpus: Path) -> Callable[[str], Task]:
    """Build a task by name; one that has no small size here gets its defaults."""

    def build(name: str) -> Task:
        extra = {"corpus": str(corpus)} if name == "text" else {}
        return task(name, {**SMALL.get(name, {}), **extra})

    return build
