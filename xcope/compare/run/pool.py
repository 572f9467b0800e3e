"""Train runs side by side, each in a worker process of its own."""

from __future__ import annotations

import csv
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import psutil
import torch
from rich.console import Console

from xcope.compare.run import server
from xcope.compare.run.display import Lines, display
from xcope.compare.run.plan import CompareInterruptedError, Run
from xcope.compare.run.results import Outcome, outcome
from xcope.compare.run.schedule import Schedule
from xcope.compare.run.worker import (
    Ended,
    Go,
    Held,
    Hold,
    Job,
    Message,
    Moved,
    Warned,
    serve,
)
from xcope.config import Config, check_data, check_trackers
from xcope.environment import system
from xcope.files import read_text
from xcope.training import RunFolder
from xcope.training.checkpoint import exists
from xcope.training.warm import check_start


@dataclass(frozen=True)
class Circumstances:
    """How a comparison was run.

    Args:
        command: what to type to run it again.
        device: ``cpu`` or ``cuda``.
        jobs: runs side by side.
        threads: torch threads of each run.
    """

    command: str
    device: str
    jobs: int
    threads: int

    @property
    def machine(self) -> str:
        """Device, runs side by side, cores."""
        return (
            f"device {self.device}; {self.jobs} runs at a time, torch threads of each: "
            f"{self.threads}; {system()}"
        )


@dataclass(frozen=True)
class Runner:
    """Train runs, and read what came out of them.

    Args:
        out: folder of the comparison.
        console: where progress is shown.
    """

    out: Path
    how: Circumstances
    console: Console

    def outcomes(
        self, runs: Sequence[Run], kind: str, hopeless: Mapping[str, str] | None = None
    ) -> dict[str, Outcome]:
        """Train the runs that are not complete; returns name → outcome of every run.

        Args:
            kind: ``"tuning "`` or nothing, for what is shown.
            hopeless: name of a run that is not to be trained → why.

        Raises:
            CompareInterruptedError: Ctrl-C; what had begun is saved.
        """
        reasons = dict(hopeless or {})
        if not runs:
            return {}
        with display(self.console, runs) as shown:
            todo = [run for run in runs if not run.complete and run.name not in reasons]
            check_tasks([run.config for run in todo])
            check_starts(todo)
            self._announce(shown, runs, todo, kind)
            try:
                reasons |= run_all(
                    todo,
                    jobs=self.how.jobs,
                    threads=self.how.threads,
                    logs=self.out / "logs",
                    display=shown,
                    hold=self.how.device == "cpu",
                )
            except KeyboardInterrupt:
                done = sum(run.complete for run in runs)
                raise CompareInterruptedError(
                    f"stopped with {done} of {len(runs)} {kind}runs complete. To go on:\n"
                    f"  {self.how.command}"
                ) from None
        return {run.name: outcome(run, reasons.get(run.name)) for run in runs}

    def _announce(self, shown: Lines, runs: Sequence[Run], todo: Sequence[Run], kind: str) -> None:
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
            rows = csv.DictReader(read_text(out / name).splitlines(keepends=True))
            failed |= {row["run"] for row in rows if row.get("status") == "failed"}
    return failed


def check_tasks(configs: Sequence[Config]) -> None:
    """Raise `ConfigError` if the data of a task cannot be read, or a tracker is not installed."""
    for config in {repr(one.task): one for one in configs}.values():
        check_data(config)
    for config in {repr(one.train.track): one for one in configs}.values():
        check_trackers(config)


def check_starts(runs: Sequence[Run], *cleared: Path) -> None:
    """Raise `ConfigError` if a run is to begin with the weights of another, and cannot.

    Args:
        cleared: folders that will not hold by then what they hold now.
    """
    new = [run for run in runs if not exists(RunFolder(run.folder).checkpoint) or cleared]
    configs = [run.config for run in new]
    different = {f"{one.train.init_from} {one.model!r} {one.task!r}": one for one in configs}
    for config in different.values():
        check_start(config, *cleared)


def run_all(
    runs: Sequence[Run], *, jobs: int, threads: int, logs: Path, display: Lines, hold: bool = True
) -> dict[str, str]:
    """Train every run, ``jobs`` at a time, the longest first; see `xcope.compare.run.schedule`.

    Args:
        runs: in this order those begin that take equally long.
        jobs: runs that train at a time.
        threads: torch threads of each.
        logs: folder of one log per run.
        display: is told what happens.
        hold: a run may wait, in memory, for another one.

    Returns:
        Run name → why it failed, for those that did.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs that had begun have saved a checkpoint. A second one
            stops them at once.
    """
    schedule, workers, failed = Schedule(runs, jobs), dict[str, Worker](), dict[str, str]()
    try:
        while True:
            while run := schedule.next():
                if run.name in workers:
                    workers[run.name].go_on()
                    display.goes_on(run)
                else:
                    workers[run.name] = Worker(run, threads, logs)
                    workers[run.name].start()
            if not workers:
                return failed
            ready = wait([worker.connection for worker in workers.values()])
            for worker in [one for one in workers.values() if one.connection in ready]:
                message = worker.receive()
                if isinstance(message, Ended):
                    del workers[worker.run.name]
                    worker.join()
                    if message.reason:
                        failed[worker.run.name] = message.reason
                _tell(worker.run, message, schedule, display)
            asked = any(worker.asked for worker in workers.values())
            if hold and not asked and (run := schedule.makes_room()):
                workers[run.name].hold()
    except KeyboardInterrupt:
        display.note("stopping: the runs in hand save a checkpoint (Ctrl-C again stops at once)")
        raise
    finally:
        _dismiss(list(workers.values()))


def _tell(run: Run, message: Message, schedule: Schedule, display: Lines) -> None:
    """Pass on what a worker says of its run."""
    if isinstance(message, Moved):
        schedule.moved(run, message.step)
        display.moved(run, message)
    elif isinstance(message, Held):
        schedule.held(run)
        display.waits(run)
    elif isinstance(message, Warned):
        display.note(f"{run.name}: warning: {message.line}")
    else:
        schedule.ended(run)
        display.ended(run, message.reason)


def _dismiss(workers: Sequence[Worker]) -> None:
    """Hang up, and wait until each worker has saved what it has in hand."""
    for worker in workers:
        worker.connection.close()
    started = [worker.process for worker in workers if worker.process.pid is not None]
    try:
        for process in started:
            process.join()
    except KeyboardInterrupt:
        for process in started:
            process.kill()
        raise


class Worker:
    """A process that trains one run.

    Every run has a new one, so that the memory it takes does not depend on what ran before.

    Args:
        threads: torch threads.
        logs: folder of the run's log.
    """

    def __init__(self, run: Run, threads: int, logs: Path) -> None:
        self.run = run
        context = _context()
        self.connection, self._theirs = context.Pipe()
        # the process may have another working folder than this one has now
        log = (logs / f"{run.name}.log").absolute()
        tuning = "-tuning" if run.folder.parent.name == "tuning" else ""
        group = f"{log.parent.parent.name}{tuning}"
        job = Job(run.config, run.folder.absolute(), log, group)
        arguments = (self._theirs, job, threads)
        self.process = context.Process(name=run.name, target=serve, args=arguments, daemon=True)
        self._failure = ""
        self.asked = False
        """Whether the run was asked to wait, and has not said that it does."""

    def start(self) -> None:
        """Start the process."""
        try:
            with server.uninterrupted():
                self.process.start()
        except (EOFError, OSError) as error:  # no memory for it, or no file left to open
            reason = str(error) or type(error).__name__
            self._failure = f"its process cannot start ({reason}), perhaps out of memory"
        self._theirs.close()

    def receive(self) -> Message:
        """The next message; `Ended` with a reason if the process died."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            self.join()
            died = f"its process died ({_cause(self.process.exitcode or 0)})"
            return Ended(self._failure or died)
        if isinstance(message, Held):
            self.asked = False
        return message

    def hold(self) -> None:
        """Ask the run to wait after its present step, if memory has room for one more process like
        this; `Held` says that it does."""
        try:
            taken: int = psutil.Process(self.process.pid).memory_info().rss
        except psutil.Error:  # it has just ended
            return
        if psutil.virtual_memory().available > 2 * taken:
            self._send(Hold())
            self.asked = True

    def go_on(self) -> None:
        """Let a run that waits go on."""
        self._send(Go())

    def _send(self, message: Hold | Go) -> None:
        with suppress(OSError):  # a process that died is noticed where it is listened to
            self.connection.send(message)

    def join(self) -> None:
        """Hang up, and wait until the process has ended."""
        self.connection.close()
        if self.process.pid is not None:
            self.process.join()


def _context() -> SpawnContext | ForkServerContext:
    """How processes start: forked from one that has imported all that is slow to import.

    Where there is a GPU each is spawned: a fork of a process that has initialised CUDA cannot use
    it.
    """
    return multiprocessing.get_context("spawn") if torch.cuda.is_available() else server.context()


def _cause(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
