"""Scripts as a person calls them: in this process for speed, or as a process of their own."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    "model": {"dim": 16, "depth": 1, "heads": 2, "position": "rotary"},
    "task": {"name": "selective_copy", "tokens": 3, "blanks": 3, "values": 4},
    "train": {"steps": 6, "batch_size": 8, "lr": 0.01, "log_every": 1, "device": "cpu"},
    "evaluate": {"batches": 2, "batch_size": 16},
}


@dataclass(frozen=True)
class Ended:
    """How a script ended and what it wrote."""

    code: int
    out: str
    err: str


Script = Callable[..., Ended]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Script:
    """``script("train", "config.yaml", …)`` runs scripts/train.py in this process."""

    def call(name: str, *arguments: object) -> Ended:
        path = REPO / "scripts" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capfd.readouterr()
        usual = signal.getsignal(signal.SIGINT)  # a script leaves Ctrl-C to the system
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(path), run_name="__main__")
        finally:
            signal.signal(signal.SIGINT, usual)
        out, err = capfd.readouterr()
        return Ended(int(end.value.code or 0), out, err)

    return call


@pytest.fixture
def start_script() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start_script("train", …, RANK="0")`` starts a process of its own, with environment."""
    started = []

    def start(name: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, REPO / "scripts" / f"{name}.py", *map(str, arguments)],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_for_steps() -> Callable[[subprocess.Popen[str], Path, int], None]:
    """Wait until a running script has logged so many steps in this file."""

    def wait(process: subprocess.Popen[str], metrics: Path, steps: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= steps:
                return
            if process.poll() is not None:
                pytest.fail(f"ended too early: {process.communicate()}")
            time.sleep(0.01)
        pytest.fail("no progress in a minute")

    return wait


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """The config file of a run of six updates."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture
def user_error() -> Callable[..., None]:
    """Asserts one clear line on stderr with the given parts, exit code 2 and no traceback."""

    def check(ended: Ended, *parts: str) -> None:
        assert ended.code == 2
        assert "Traceback" not in ended.err
        assert ended.out == ""
        for part in parts:
            assert part in ended.err

    return check
