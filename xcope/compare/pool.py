"""Runs side by side in worker processes: hand out the runs, listen, replace a worker that died."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

from xcope.compare.display import Display
from xcope.compare.plan import Run
from xcope.compare.worker import Ended, Job, Message, Moved, serve


def run_all(
    runs: Sequence[Run], *, jobs: int, threads: int, logs: Path, display: Display
) -> dict[str, str]:
    """Train every run, ``jobs`` at a time.

    Args:
        runs: in the order in which they start.
        jobs: worker processes.
        threads: torch threads of each.
        logs: folder of one log per run.
        display: is told what happens.

    Returns:
        Run name → why it failed, for those that did.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs that had begun have saved a checkpoint. A second one
            stops them at once.
    """
    waiting, failed = deque(runs), dict[str, str]()
    workers = [Worker(threads) for _ in range(min(jobs, len(runs)))]
    try:
        for worker in workers:
            worker.take(waiting.popleft(), logs)
        while busy := [worker for worker in workers if worker.run]:
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    _listen(worker, failed, display)
                if worker.run is None and waiting:
                    worker.take(waiting.popleft(), logs)
    except KeyboardInterrupt:
        display.note("stopping: the runs in hand save a checkpoint (Ctrl-C again stops at once)")
        raise
    finally:
        _dismiss(workers)
    return failed


def _listen(worker: Worker, failed: dict[str, str], display: Display) -> None:
    """Pass one message of a busy worker on."""
    run, message = worker.run, worker.receive()
    assert run is not None
    if isinstance(message, Moved):
        display.moved(run, message)
        return
    worker.run = None
    if message.reason:
        failed[run.name] = message.reason
    display.ended(run, message.reason)


def _dismiss(workers: Sequence[Worker]) -> None:
    """Hang up, and wait until each worker has saved what it has in hand."""
    for worker in workers:
        worker.connection.close()
    try:
        for worker in workers:
            worker.process.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.kill()
        raise


class Worker:
    """A worker process and the run that it has in hand (None: it is idle)."""

    def __init__(self, threads: int) -> None:
        self.run: Run | None = None
        self._threads = threads
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self._threads), daemon=True)
        # a terminal's Ctrl-C goes to every process: the worker must not die of it while it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        theirs.close()

    def take(self, run: Run, logs: Path) -> None:
        """Begin a run, in a new process if the old one died."""
        if self.connection.closed or not self.process.is_alive():
            self._start()
        self.run = run
        self.connection.send(Job(run.config, run.folder, logs / f"{run.name}.log"))

    def receive(self) -> Message:
        """The next message; `Ended` with a reason if the process died."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            self.connection.close()
            self.process.join()
            return Ended(f"its process died ({_cause(self.process.exitcode or 0)})")
        return message


def _cause(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
