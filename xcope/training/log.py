"""The log of a run: one JSON line per logged step, and TensorBoard where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xcope import files
from xcope.training.errors import RunError


class MetricsLog:
    """Context that appends to ``metrics.jsonl`` and writes TensorBoard events beside it.

    Args:
        path: the JSON lines file.
        events: folder of the TensorBoard events.
        step: the step from which the run goes on; later lines, which an interrupted run may have
            written after its last checkpoint, are dropped.
    """

    def __init__(self, path: Path, events: Path, step: int) -> None:
        keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(events, step)

    def write(self, metrics: dict[str, float]) -> None:
        """Log ``metrics``, which has the key ``step``."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                if name != "step":
                    self._board.add_scalar(f"train/{name}", value, metrics["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The logged steps in order; a last line that was cut off is left out.

    Raises:
        RunError: another line is damaged.
    """
    try:
        lines = files.read_text(path).splitlines(keepends=True)
        return [_logged(line) for line in lines if line.endswith("\n")]
    except FileNotFoundError:
        return []
    except files.UnreadableError as error:
        raise RunError(f"{path} {error}") from None


def _logged(line: str) -> dict[str, float]:
    logged = files.parse_json(line)
    if not isinstance(logged, dict) or not {"step", "loss"} <= logged.keys():
        raise files.UnreadableError(f"is damaged: {line.strip()[:80]!r} is no logged step")
    return logged


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps than ``step``."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _tensorboard(folder: Path, step: int) -> Any | None:
    """A writer that hides what an earlier process logged after ``step``; None if not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    tensorboard = importlib.import_module("torch.utils.tensorboard")
    return tensorboard.SummaryWriter(str(folder), purge_step=step + 1)
