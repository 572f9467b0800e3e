"""Runs side by side, each in a worker process of its own: start them, and listen."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import torch

from xcope.compare.run.display import Display
from xcope.compare.run.plan import Run
from xcope.compare.run.worker import Ended, Job, Message, Moved, serve

PRELOADED = ["xcope.compare.run.worker", "xcope.ops.cope.cpu.numba", "xcope.ops.biased.cpu.numba"]
"""What is slow to import and needed by most runs; those that cannot be imported are left out."""


def run_all(
    runs: Sequence[Run], *, jobs: int, threads: int, logs: Path, display: Display
) -> dict[str, str]:
    """Train every run, ``jobs`` at a time.

    Args:
        runs: in the order in which they start.
        jobs: worker processes at a time.
        threads: torch threads of each.
        logs: folder of one log per run.
        display: is told what happens.

    Returns:
        Run name → why it failed, for those that did.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs that had begun have saved a checkpoint. A second one
            stops them at once.
    """
    waiting, busy, failed = deque(runs), list[Worker](), dict[str, str]()
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                busy.append(Worker(waiting.popleft(), threads, logs))
                busy[-1].start()
            ready = wait([worker.connection for worker in busy])
            for worker in [one for one in busy if one.connection in ready]:
                if _listen(worker, failed, display):
                    busy.remove(worker)
    except KeyboardInterrupt:
        display.note("stopping: the runs in hand save a checkpoint (Ctrl-C again stops at once)")
        raise
    finally:
        _dismiss(busy)
    return failed


def _listen(worker: Worker, failed: dict[str, str], display: Display) -> bool:
    """Pass one message of a worker on; whether it was the last."""
    message = worker.receive()
    if isinstance(message, Moved):
        display.moved(worker.run, message)
        return False
    worker.connection.close()
    worker.join()
    if message.reason:
        failed[worker.run.name] = message.reason
    display.ended(worker.run, message.reason)
    return True


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
        job = Job(run.config, run.folder.absolute(), (logs / f"{run.name}.log").absolute())
        arguments = (self._theirs, job, threads)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self._failure = ""

    def start(self) -> None:
        """Begin."""
        # a terminal's Ctrl-C goes to every process: the worker must not die of it while it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        except (EOFError, OSError) as error:  # no memory for it, or no file left to open
            reason = str(error) or type(error).__name__
            self._failure = f"its process cannot start ({reason}), perhaps out of memory"
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self._theirs.close()

    def receive(self) -> Message:
        """The next message; `Ended` with a reason if the process died."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            self.join()
            died = f"its process died ({_cause(self.process.exitcode or 0)})"
            return Ended(self._failure or died)
        return message

    def join(self) -> None:
        """Wait until the process has ended."""
        if self.process.pid is not None:
            self.process.join()


def _context() -> SpawnContext | ForkServerContext:
    """How processes start: as copies of one that has imported all that is slow to import.

    Where there is a GPU each starts from nothing: a copy of a process that has looked at the GPU
    could not use it.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _cause(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
