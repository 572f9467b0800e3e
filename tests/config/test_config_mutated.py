"""Twelve thousand damaged configs: each loads, or ends in a `ConfigError` of one line."""

import itertools
import random
import resource
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutations import mutated

from xcope.config import Config, ConfigError, load_config
from xcope.config.check import check_model
from xcope.config.compose import LIBRARY
from xcope.config.yaml_tree import Node

pytestmark = pytest.mark.long

COUNT = 12_000
MINUTES = 5
PATIENCE = 20.0
"""Seconds that one config may take."""
MEMORY = 12 * 2**30
"""Bytes of addresses; torch alone takes three gigabytes."""
RESULTS = LIBRARY.parent / "results"


@pytest.fixture
def texts(small_library: Path, tmp_path: Path) -> list[str]:
    """The configs that there are: the repository's, those of results, resolved ones of runs."""
    files = sorted([*LIBRARY.rglob("*.yaml"), *RESULTS.rglob("config.yaml")])
    # nothing is asked of the hub
    files = [file for file in files if "dataset:" not in file.read_text()]
    tasks = itertools.cycle(sorted(f for f in files if f.parent == LIBRARY / "tasks"))
    runs = []
    for scheme, task in zip(sorted((LIBRARY / "schemes").glob("*.yaml")), tasks, strict=False):
        (tmp_path / "run.yaml").write_text(f"extends: [models/tiny.yaml, {task}, {scheme}]\n")
        runs.append(load_config(tmp_path / "run.yaml").to_yaml())
    return [file.read_text() for file in files] + runs * 2


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the standard library, from which tasks on text are drawn."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(40):
        text = f'def function_{number}(x):\n    """Add {number} to x."""\n    return x + {number}\n'
        (folder / f"module_{number}.py").write_text(text * 40)
    (folder / "pydoc_data").mkdir()
    (folder / "pydoc_data" / "topics.py").write_text("One word after another.\n" * 2000)
    monkeypatch.setattr(sysconfig, "get_paths", lambda *_, **__: {"stdlib": str(folder)})
    return folder


@pytest.fixture
def bounded() -> Iterator[None]:
    """A config that asks for terabytes must not get them, nor a minute."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    usual = signal.signal(signal.SIGALRM, _too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, usual)
    resource.setrlimit(resource.RLIMIT_AS, before)


class TooSlowError(BaseException):
    """A config kept the loader busy for longer than `PATIENCE`."""


def _too_slow(*_: object) -> None:
    raise TooSlowError


@pytest.fixture
def models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was tried is not tried again: most mutations leave model and task alone."""
    tried = set[str]()

    def once(tree: Node, config: Config) -> None:
        described = repr((config.model, config.task))
        if described not in tried:
            check_model(tree, config)
            tried.add(described)

    monkeypatch.setattr("xcope.config.check.check_model", once)


@pytest.mark.usefixtures("bounded", "models_once")
def test_a_mutated_config_loads_or_ends_in_an_error_of_ours(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    # a damaged tokenizer may be the name of one on the hub
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file, began, ends = tmp_path / "config.yaml", time.monotonic(), Counter[str]()
    lines = 0
    for number in range(COUNT):
        file.write_bytes(mutated(texts[number % len(texts)], random.Random(number)))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            load_config(file.name, sweep=True)
            ends["loads"] += 1
        except ConfigError as error:
            ends["refused"] += 1
            lines += str(error).count("\n")
        except BaseException as error:
            pytest.fail(f"mutation {number}: {type(error).__name__}: {error}")
    assert time.monotonic() - began < 60 * MINUTES
    assert not lines, "an error is one line"
    assert ends["loads"] > COUNT / 20, "the mutations are so coarse that nothing is tried"
