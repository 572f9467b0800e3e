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
    "parity": {"length": 5, "stretch": 4},
    "copy": {"length": 5, "stretch": 4},
    "recall": {"pairs": 3, "blanks": 5, "stretch": 4},
    "indexing": {"length": 60, "max_k": 3, "longest_word": 8, "stretch": 4},
}
ON_TEXT = frozenset({"text", "indexing"})


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
def small_task(corpus: Path) -> Callable[..., Task]:
    """Build a task by name; one that has no small size here gets its defaults."""

    def build(name: str, **options: Any) -> Task:
        extra = {"corpus": str(corpus)} if name in ON_TEXT else {}
        return task(name, {**SMALL.get(name, {}), **extra, **options})

    return build
