"""A worker process: trains one run and reports to its parent over a pipe.

When the parent hangs up (Ctrl-C, or it died), the run saves a checkpoint and stops.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from xcope.config import Config
from xcope.errors import told
from xcope.ops.compiled import call_for
from xcope.training import RunInterruptedError, train

PERIOD = 0.2
"""Seconds between two reports of a run's progress."""


@dataclass(frozen=True)
class Job:
    """A run to train or to go on with.

    Args:
        log: gets what it writes to stdout and stderr.
        group: under which trackers show it.
    """

    config: Config
    folder: Path
    log: Path
    group: str


@dataclass(frozen=True)
class Moved:
    """Progress of a run: ``step`` of ``steps`` are done; ``loss`` is None before the first."""

    step: int
    steps: int
    loss: float | None = None


@dataclass(frozen=True)
class Ended:
    """End of a run; ``reason`` says why it failed and is empty if it did not."""

    reason: str = ""


@dataclass(frozen=True)
class Warned:
    """Something that went wrong, without which the run goes on."""

    line: str


@dataclass(frozen=True)
class Held:
    """The run waits between two steps, as it was asked to."""


Message = Moved | Warned | Held | Ended


@dataclass(frozen=True)
class Hold:
    """To a worker: do no further step until `Go`."""


@dataclass(frozen=True)
class Go:
    """To a worker that is held: go on."""


def serve(connection: Connection, job: Job, threads: int) -> None:
    """Do a job and report how it ended: the body of a worker process."""
    # the parent decides about Ctrl-C; it started this process with SIGINT blocked
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    torch.set_num_threads(threads)
    try:
        with _output_to(job.log):
            call_for(torch.empty(0))  # if kernels are to be compiled, it is none of its seconds
            ended = _run(job, connection)
        connection.send(ended)
    except OSError:  # the parent hung up
        return


def _run(job: Job, connection: Connection) -> Ended:
    try:
        reporter = _Report(connection)
        train(job.config, job.folder, resume=True, reporter=reporter, group=job.group)
    except RunInterruptedError:
        return Ended("stopped by a signal; the same command goes on with it")
    except Exception as error:
        line = told(error)
        if line is None:
            traceback.print_exc()
        return Ended(_one_line(line or f"{type(error).__name__}: {error}"))
    return Ended()


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]} …"


class _Report:
    """A reporter that sends each `Moved` to the parent, but not too often."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._steps, self._last = 0, 0.0

    def note(self, line: str) -> None:
        """Print it, into the run's log."""
        print(line)

    def warn(self, line: str) -> None:
        """Tell it, and print it into the run's log."""
        self.note(f"warning: {line}")
        self._send(Warned(_one_line(line)))

    def start(self, label: str, step: int, steps: int) -> None:
        """Tell where the run starts from."""
        self._steps = steps
        self._send(Moved(step, steps))

    def step(self, step: int, loss: float) -> None:
        """Tell that a step is done."""
        if step == self._steps or time.monotonic() - self._last >= PERIOD:
            self._send(Moved(step, self._steps, loss))
            if step < self._steps:
                self._make_room()

    def end(self) -> None:
        """Nothing: `Ended` follows."""

    def measured(self, split: str, batch: int, batches: int) -> None:
        """Nothing: training takes longer."""

    def _make_room(self) -> None:
        """If the parent asks for it, wait until it lets the run go on."""
        try:
            if self._connection.poll() and isinstance(self._connection.recv(), Hold):
                self._connection.send(Held())
                self._connection.recv()
        except (EOFError, OSError):  # the parent hung up
            signal.raise_signal(signal.SIGINT)

    def _send(self, message: Message) -> None:
        self._last = time.monotonic()
        try:
            self._connection.send(message)
        except OSError:  # the parent hung up
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send all that this process prints, also from C, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
        saved = os.dup(1), os.dup(2)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            faulthandler.disable()
            for old, number in zip(saved, (1, 2), strict=True):
                os.dup2(old, number)
                os.close(old)
            if not path.stat().st_size:
                path.unlink()
