"""The log of a run: one JSON line per logged step, and what trackers are told of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from xcope import files
from xcope.training.errors import RunError
from xcope.training.trackers import Trackers


class MetricsLog:
    """Context that appends to ``metrics.jsonl`` and tells the trackers.

    Args:
        path: the JSON lines file.
        step: the step from which the run goes on; later lines, which an interrupted run may have
            written after its last checkpoint, are dropped.
    """

    def __init__(self, path: Path, step: int, trackers: Trackers) -> None:
        logged = read_metrics(path)
        self._logged = logged[-1]["step"] if logged else 0
        keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, metrics: dict[str, float]) -> None:
        """Log ``metrics``, which has the key ``step``."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        self._trackers.log(metrics, again=metrics["step"] <= self._logged)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


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
