"""What came out of each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xcope.compare.run.plan import Run
from xcope.training import Result, RunFolder, read_metrics


@dataclass(frozen=True)
class Outcome:
    """A run that ended: with its results, or failed with the reason.

    Args:
        reason: why it failed, one line; empty where it did not.
        metrics: split → metric → value; empty where the run failed.
        params: number of parameters.
        steps: training steps.
        seconds: training time, evaluation not included.
        pace: seconds per step without the first, in which kernels are compiled or loaded.
        by_position: split → ``edges`` and ``values``; empty where it was not measured.
        timing: what else the run noted of itself: ``peak_bytes``, ``device``, ``threads``, ….
    """

    run: Run
    reason: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    params: int = 0
    steps: int = 0
    seconds: float = 0.0
    pace: float = 0.0
    by_position: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int | None:
        """Memory at the peak of training; None where it is not known."""
        peak: int | None = self.timing.get("peak_bytes")
        return peak

    @property
    def ok(self) -> bool:
        """Whether the run has results."""
        return not self.reason

    @property
    def status(self) -> str:
        """``ok`` or ``failed``."""
        return "ok" if self.ok else "failed"


def outcome(run: Run, reason: str | None) -> Outcome:
    """Read what came out of a run from its folder.

    Args:
        reason: why it failed; None if it did not.
    """
    folder = RunFolder(run.folder)
    result = folder.read_result() if reason is None else None
    if result is None:
        return Outcome(run, reason or "it has no results")
    return Outcome(
        run,
        metrics=result.splits,
        params=result.params,
        steps=result.steps,
        seconds=result.seconds,
        pace=_pace(folder, result),
        by_position=result.by_position,
        timing=folder.read_timing(),
    )


def _pace(folder: RunFolder, result: Result) -> float:
    """Seconds per step after the first one that was logged."""
    points = read_metrics(folder.metrics)
    if len(points) < 2:
        return result.seconds / result.steps
    first, last = points[0], points[-1]
    return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
