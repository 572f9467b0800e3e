"""What came out of each run, and the two tables of it: `results.csv` and `timings.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    """What is in the run's folder, or why nothing is: ``reason``."""
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


def write_results(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write every number, one a line; a failed run is one line with the reason and no number.

    Runs, splits and metrics stand in the order of the sweep and of the evaluation, and nothing
    in the file depends on time: the same seeds give the same bytes.
    """
    keys = _swept_keys(outcomes)
    header = ["run", "scheme", "seed", *keys, "status", "split", "metric", "value", "reason"]
    write_csv(path, header, (row for outcome in outcomes for row in _result_rows(outcome, keys)))


def _result_rows(outcome: Outcome, keys: Sequence[str]) -> Iterator[list[object]]:
    head = [*_head(outcome, keys), outcome.status]
    if not outcome.ok:
        yield [*head, "", "", "", outcome.reason]
    for split, metrics in outcome.metrics.items():
        for metric, value in metrics.items():
            yield [*head, split, metric, repr(value), ""]


def write_timings(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write what each run cost: steps, seconds, steps per second, peak memory; empty where it
    failed or was not measured."""
    keys = _swept_keys(outcomes)
    costs = ["steps", "seconds", "steps_per_second", "peak_bytes"]
    header = ["run", "scheme", "seed", *keys, "status", *costs]
    write_csv(path, header, ([*_head(o, keys), o.status, *_timing(o)] for o in outcomes))


def _timing(outcome: Outcome) -> list[str]:
    if not outcome.ok:
        return [""] * 4
    seconds, peak = outcome.seconds, outcome.peak_bytes
    speed = f"{outcome.steps / seconds:.2f}"
    return [str(outcome.steps), f"{seconds:.2f}", speed, "" if peak is None else str(peak)]


def _swept_keys(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(key for outcome in outcomes for key in outcome.run.swept))


def _head(outcome: Outcome, keys: Sequence[str]) -> list[object]:
    run = outcome.run
    return [run.name, run.scheme, run.seed, *(run.swept.get(key, "") for key in keys)]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
