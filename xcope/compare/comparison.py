"""A comparison from beginning to end: tuning, the runs of a sweep, then tables, plots, reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xcope import plugins
from xcope.compare.report.answer import terminal_answer
from xcope.compare.report.columns import chosen
from xcope.compare.report.findings import Findings
from xcope.compare.report.tables import terminal_table
from xcope.compare.report.write import write
from xcope.compare.run.folder import check_picked, opened
from xcope.compare.run.plan import CompareError, plan
from xcope.compare.run.pool import Circumstances, Runner, check_starts, check_tasks
from xcope.compare.run.tuning import picks, plan_tuning, with_picks
from xcope.compare.stats.summary import summarise
from xcope.config import Config, expand_sweep, expand_tuning
from xcope.training import device_for


@dataclass(frozen=True, kw_only=True)
class Comparison(Findings):
    """What a comparison found, and the folder that holds it."""

    out: Path

    @property
    def answers(self) -> list[Text]:
        """For the terminal: of each task a sentence for each split."""
        return list(map(terminal_answer, self.summaries))

    @property
    def tables(self) -> list[Table]:
        """For the terminal: of each task one with costs, then one for each further metric."""
        return [
            terminal_table(one, self.columns if one is summary else ())
            for summary in self.summaries
            for one in (summary, *summary.further)
        ]


def compare(
    config: Config,
    out: Path,
    *,
    jobs: int | None = None,
    threads: int = 1,
    overwrite: bool = False,
    show: Sequence[str] = (),
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
        show: names of metrics (`xcope.training.metrics.METRICS`) and of columns
            (`xcope.compare.report.columns.COLUMNS`) that tables, reports and plots show beside the
            usual ones. Runs that are complete need not be trained again for it.
        command: how to make the comparison again, for the report and messages.
        console: where progress is shown; None for stderr.

    Raises:
        CompareError: no sweep, a name in ``show`` that nothing has, or ``out`` holds something
            else.
        ConfigError: a baseline that is not in the sweep, data that a run to train cannot read.
        CompareInterruptedError: Ctrl-C; what had begun is saved.
    """
    jobs = default_jobs(config) if jobs is None else jobs
    for flag, number in (("jobs", jobs), ("threads", threads)):
        if number < 1:
            raise CompareError(f"--{flag} {number}: it takes at least 1")
    metrics, columns = chosen(show)
    if overwrite or not out.exists():
        check_tasks([*expand_tuning(config, data=False), *expand_sweep(config, data=False)])
    runs, trials = plan(config, out), plan_tuning(config, out)
    if overwrite or not out.exists():
        check_starts([*(trial.run for trial in trials), *runs], out)
    command = command or f"xcope.compare.compare(config, {str(out)!r})"
    how = Circumstances(command, str(device_for(config.train.device)), jobs, threads)
    tuning = [trial.run for trial in trials]
    with opened(out, runs, tuning, overwrite=overwrite):
        (out / "runs").mkdir(exist_ok=True)
        (out / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        plugins.keep(config.plugins, out / "plugins")
        runner = Runner(out, how, console or Console(stderr=True))
        tuned = runner.outcomes(tuning, "tuning ")
        picked = picks(trials, lambda run: tuned[run.name])
        runs, hopeless = with_picks(runs, picked)
        if trials:
            check_picked([run for run in runs if run.name not in hopeless])
        ended = runner.outcomes(runs, "", hopeless)
        outcomes = tuple(ended[run.name] for run in runs)
        summaries = tuple(summarise(outcomes, config.baseline, metrics))
        found = Comparison(config, outcomes, summaries, tuple(picked), how, columns, out=out)
        write(out, found)
        return found


def default_jobs(config: Config) -> int:
    """The usable cores; 1 where a GPU computes, which the runs would share."""
    if device_for(config.train.device).type != "cpu":
        return 1
    return len(os.sched_getaffinity(0))
