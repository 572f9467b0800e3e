"""A comparison from beginning to end: tuning, the runs of a sweep, then tables, plots, reports."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from xcope.compare.report.findings import Circumstances, Findings
from xcope.compare.report.write import write
from xcope.compare.run.display import Display, display
from xcope.compare.run.errors import CompareError, CompareInterruptedError
from xcope.compare.run.folder import check_picked, opened
from xcope.compare.run.plan import Run, plan
from xcope.compare.run.pool import run_all
from xcope.compare.run.results import Outcome, outcome
from xcope.compare.run.tuning import Pick, picks, plan_tuning, with_picks
from xcope.compare.stats.summary import Summary, summarise
from xcope.config import Config, check_data, expand_sweep, expand_tuning
from xcope.reading import read_text
from xcope.training import device_for
from xcope.training.files import MOST_BYTES


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave.

    Args:
        outcomes: one per run, in the order of the sweep.
        summaries: one per task.
        picks: what was tuned, one for each task and scheme.
    """

    out: Path
    outcomes: tuple[Outcome, ...]
    summaries: tuple[Summary, ...]
    picks: tuple[Pick, ...] = ()

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that have no results, those of tuning not among them."""
        return tuple(outcome for outcome in self.outcomes if not outcome.ok)

    @property
    def failed_tuning(self) -> tuple[Outcome, ...]:
        """The tuning runs that have no results."""
        return tuple(one for pick in self.picks for c in pick.candidates for one in c.failed)


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

    Runs that are complete are not run again, runs that were interrupted go on, runs that failed
    are tried again. ``out`` holds ``config.yaml``, ``report.html``, ``report.md``, ``plots/``,
    ``summary.csv``, ``results.csv``, ``timings.csv``, ``tuning.csv``, ``logs/`` and a folder for
    each run, ``runs/<scheme>-seed<k>…/`` and ``tuning/…/``.

    Args:
        config: a config with a sweep.
        jobs: runs side by side; None: `default_jobs`.
        threads: torch threads of each run. Another number may change the last digits.
        overwrite: replace another comparison in ``out``.
        command: how to make the comparison again, for the report and messages.
        console: where progress is shown; None for stderr.

    Raises:
        CompareError: no sweep, or ``out`` holds something else.
        ConfigError: a baseline that is not in the sweep, data that a run to train cannot read.
        CompareInterruptedError: Ctrl-C; what had begun is saved.
    """
    jobs = default_jobs(config) if jobs is None else jobs
    for flag, number in (("jobs", jobs), ("threads", threads)):
        if number < 1:
            raise CompareError(f"--{flag} {number}: it takes at least 1")
    if overwrite or not out.exists():
        _check_data([*expand_tuning(config, data=False), *expand_sweep(config, data=False)])
    runs, trials = plan(config, out), plan_tuning(config, out)
    command = command or f"xcope.compare.compare(config, {str(out)!r})"
    how = Circumstances(command, str(device_for(config.train.device)), jobs, threads)
    tuning = [trial.run for trial in trials]
    with opened(out, runs, tuning, overwrite=overwrite):
        (out / "runs").mkdir(exist_ok=True)
        (out / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        runner = Runner(out, how, console or Console(stderr=True))
        tuned = runner.outcomes(tuning, "tuning ")
        picked = picks(trials, lambda run: tuned[run.name])
        runs, hopeless = with_picks(runs, picked)
        if trials:
            check_picked([run for run in runs if run.name not in hopeless])
        ended = runner.outcomes(runs, "", hopeless)
        outcomes = tuple(ended[run.name] for run in runs)
        summaries = tuple(summarise(outcomes, config.baseline))
        write(out, Findings(config, outcomes, summaries, picked, how))
        return Comparison(out, outcomes, summaries, tuple(picked))


def _check_data(configs: Sequence[Config]) -> None:
    """Raise `ConfigError` if the data of a run to train cannot be read."""
    for config in {repr(one.task): one for one in configs}.values():
        check_data(config)


def default_jobs(config: Config) -> int:
    """The usable cores; 1 where a GPU computes, which the runs would share."""
    if device_for(config.train.device).type != "cpu":
        return 1
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Runner:
    """Where and how runs are trained."""

    out: Path
    how: Circumstances
    console: Console

    def outcomes(
        self, runs: Sequence[Run], kind: str, hopeless: Mapping[str, str] | None = None
    ) -> dict[str, Outcome]:
        """Train what is not complete; name → outcome of every run.

        Args:
            kind: a word for the runs, for what is shown.
            hopeless: run → why it is not even begun.

        Raises:
            CompareInterruptedError: Ctrl-C; what had begun is saved.
        """
        reasons = dict(hopeless or {})
        if not runs:
            return {}
        with display(self.console, runs) as shown:
            todo = [run for run in runs if not run.complete and run.name not in reasons]
            _check_data([run.config for run in todo])
            self._announce(shown, runs, todo, kind)
            try:
                reasons |= run_all(
                    todo,
                    jobs=self.how.jobs,
                    threads=self.how.threads,
                    logs=self.out / "logs",
                    display=shown,
                )
            except KeyboardInterrupt:
                done = sum(run.complete for run in runs)
                raise CompareInterruptedError(
                    f"stopped with {done} of {len(runs)} {kind}runs complete. To go on:\n"
                    f"  {self.how.command}"
                ) from None
        return {run.name: outcome(run, reasons.get(run.name)) for run in runs}

    def _announce(
        self, shown: Display, runs: Sequence[Run], todo: Sequence[Run], kind: str
    ) -> None:
        done = sum(run.complete for run in runs)
        if done:
            shown.note(f"{done} of {len(runs)} {kind}runs are complete already")
        for name in sorted(failed_before(self.out) & {run.name for run in todo}):
            shown.note(f"{name} failed before and is tried again")
        if todo:
            jobs = min(self.how.jobs, len(todo))
            shown.note(f"{len(todo)} {kind}runs to train in {self.out}, {jobs} at a time")


def failed_before(out: Path) -> set[str]:
    """The runs that an earlier call reported as failed."""
    failed = set()
    for name in ("results.csv", "tuning.csv"):
        if (out / name).is_file():
            rows = csv.DictReader(read_text(out / name, MOST_BYTES).splitlines(keepends=True))
            failed |= {row["run"] for row in rows if row.get("status") == "failed"}
    return failed
