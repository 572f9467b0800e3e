"""A tiny comparison, made once by the script and read by many tests."""

import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from compare_runs import REPO, TINY, run_compare

from xcope.config import Config, load_config


@dataclass(frozen=True)
class Made:
    """A finished comparison and what the script printed."""

    config: Path
    out: Path
    printed: str
    progress: str


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """2 schemes × 2 seeds, two runs at a time. Not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    code, printed, progress = run_compare("tiny.yaml", "--jobs", 2, cwd=folder)
    assert code == 0, progress
    return Made(folder / "tiny.yaml", folder / "runs" / "tiny", printed, progress)


@pytest.fixture(scope="session")
def config(made: Made) -> Config:
    """The config of the comparison."""
    return load_config(made.config, sweep=True)


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run scripts/compare.py in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        path = str(REPO / "scripts" / "compare.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capfd.readouterr()
        usual = signal.getsignal(signal.SIGINT)  # a script leaves Ctrl-C to the system
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(path, run_name="__main__")
        finally:
            signal.signal(signal.SIGINT, usual)
        return (int(end.value.code or 0), *capfd.readouterr())

    return call
