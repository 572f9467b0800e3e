"""A comparison from beginning to end: the runs of a sweep, then tables, plots and the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from xcope.compare.display import Display, display
from xcope.compare.errors import CompareError, CompareInterruptedError
from xcope.compare.folder import opened
from xcope.compare.plan import Run, plan
from xcope.compare.plots import plot_curves, plot_splits
from xcope.compare.pool import run_all
from xcope.compare.report import Circumstances, report
from xcope.compare.results import Outcome, outcome, write_results, write_timings
from xcope.compare.summary import Summary, summarise
from xcope.config import Config
from xcope.training import device_for, safe_name


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave.

    Args:
        outcomes: one per run, in the order of the sweep.
        summaries: one per task.
    """

    out: Path
    outcomes: tuple[Outcome, ...]
    summaries: tuple[Summary, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that have no results."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)


def compare(
    config: Config,
    out: Path,
    *,
    jobs: int | None = None,
    threads: int = 1,
    overwrite: bool = False,
    command: str | None = None,
    console: Console | None = None,
) -> Comparison:
    """Run each run of a sweep in worker processes and write what comes out to a folder.

    Runs that are complete are not run again, runs that were interrupted go on. ``out`` holds
    ``config.yaml``, ``results.csv``, ``timings.csv``, ``report.md``, ``plots/``, ``logs/`` and
    ``runs/<scheme>-seed<k>…/``.

    Args:
        config: a config with a sweep.
        jobs: runs side by side; None: `default_jobs`.
        threads: torch threads of each run. Another number may change the last digits.
        overwrite: replace another comparison in ``out``.
        command: how to make the comparison again, for the report and messages.
        console: where progress is shown; None for stderr.

    Raises:
        CompareError: no sweep, or ``out`` holds something else.
        CompareInterruptedError: Ctrl-C; what had begun is saved.
    """
    jobs = default_jobs(config) if jobs is None else jobs
    for flag, number in (("jobs", jobs), ("threads", threads)):
        if number < 1:
            raise CompareError(f"--{flag} {number}: it takes at least 1")
    runs = plan(config, out)
    command = command or f"xcope.compare.compare(config, {str(out)!r})"
    with opened(out, runs, overwrite=overwrite):
        (out / "runs").mkdir(exist_ok=True)
        (out / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        with display(console or Console(stderr=True), runs) as shown:
            reasons = _run(runs, out, jobs, threads, shown, command)
        outcomes = tuple(outcome(run, reasons.get(run.name)) for run in runs)
        how = Circumstances(command, str(device_for(config.train.device)), jobs, threads)
        return _write(config, out, outcomes, how)


def default_jobs(config: Config) -> int:
    """The usable cores; 1 where a GPU computes, which the runs would share."""
    if device_for(config.train.device).type != "cpu":
        return 1
    return len(os.sched_getaffinity(0))


def _run(
    runs: Sequence[Run], out: Path, jobs: int, threads: int, shown: Display, command: str
) -> dict[str, str]:
    """Train what is not complete; run name → why it failed."""
    todo = [run for run in runs if not run.complete]
    if len(todo) < len(runs):
        shown.note(f"{len(runs) - len(todo)} of {len(runs)} runs are complete already")
    if todo:
        shown.note(f"{len(todo)} runs to train in {out}, {min(jobs, len(todo))} at a time")
    try:
        return run_all(todo, jobs=jobs, threads=threads, logs=out / "logs", display=shown)
    except KeyboardInterrupt:
        done = sum(run.complete for run in runs)
        raise CompareInterruptedError(
            f"stopped with {done} of {len(runs)} runs complete. To go on:\n  {command}"
        ) from None


def _write(
    config: Config, out: Path, outcomes: tuple[Outcome, ...], how: Circumstances
) -> Comparison:
    """All that is made from the runs' results."""
    write_results(out / "results.csv", outcomes)
    write_timings(out / "timings.csv", outcomes)
    summaries = tuple(summarise(outcomes))
    plots = [_plot(summary, out) for summary in summaries]
    (out / "report.md").write_text(report(config, summaries, plots, how), encoding="utf-8")
    return Comparison(out, outcomes, summaries)


def _plot(summary: Summary, out: Path) -> list[str]:
    """Draw a summary's plots; returns their paths from ``out``."""
    task = safe_name(summary.task)
    errors, losses = f"plots/{summary.metric}-{task}.png", f"plots/loss-{task}.png"
    (out / "plots").mkdir(exist_ok=True)
    plot_splits(summary, out / errors)
    plot_curves(summary, out / losses)
    return [errors, losses]
