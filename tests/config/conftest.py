"""Config files in an empty folder, which is the working folder while a test runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xcope.config import ConfigError, load_config

Write = Callable[[str, str], Path]

BASE = """\
model:
  dim: 16
  depth: 1
  heads: 2
  position: none
task:
  name: selective_copy
  tokens: 2
  blanks: 4
train:
  steps: 10
"""


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("a/b.yaml", text)``: a file below the working folder, by its relative path."""

    def to(name: str, text: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return Path(name)

    return to


@pytest.fixture
def base(write: Write) -> Path:
    """A small config that is right."""
    return write("base.yaml", BASE)


@pytest.fixture
def error() -> Callable[..., ConfigError]:
    """``error(path, *overrides, sweep=False)``: what load_config raises."""

    def of(path: str | Path, *overrides: str, sweep: bool = False) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides, sweep=sweep)
        assert "\n" not in str(caught.value)
        return caught.value

    return of
