"""What the tests of training share: a tiny run, and comparisons of what two runs leave."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from xcope.config import Config
from xcope.training import read_metrics

TINY: dict[str, Any] = {
    "model": {"dim": 16, "depth": 1, "heads": 2, "position": "rotary"},
    "task": {"name": "selective_copy", "tokens": 3, "blanks": 3, "values": 4},
    "train": {
        "steps": 12, "batch_size": 8, "lr": 0.01, "log_every": 4, "checkpoint_every": 5,
        "device": "cpu",
    },
    "evaluate": {"batches": 2, "batch_size": 16},
}  # fmt: skip

MakeConfig = Callable[..., Config]


class At:
    """A reporter that does something after a step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.at, self.action = step, action
        self.seen: list[int] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.batches: list[tuple[str, int, int]] = []
        self.ended = False

    def note(self, line: str) -> None:
        self.notes.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def measured(self, split: str, batch: int, batches: int) -> None:
        self.batches.append((split, batch, batches))

    def start(self, label: str, step: int, steps: int) -> None:
        self.first = step

    def step(self, step: int, loss: float) -> None:
        self.seen.append(step)
        if step == self.at:
            self.action()

    def end(self) -> None:
        self.ended = True


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_run(run: Path, other: Path) -> None:
    """All that a run leaves is the same, except times."""
    assert_same_weights(run, other)
    assert (run / "results.json").read_bytes() == (other / "results.json").read_bytes()
    assert timeless(run) == timeless(other)


def timeless(run: Path) -> list[Mapping[str, float]]:
    """The logged metrics without the time."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())
