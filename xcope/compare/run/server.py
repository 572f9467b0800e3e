"""The process that workers are forked from: it imports once what takes seconds to import.

It needs no torch here: a command starts it, and imports torch itself at the same time.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Of which there is one where there is a GPU."""


def has_driver() -> bool:
    """Whether this machine may have a GPU."""
    return any(path.exists() for path in DRIVERS)


def context() -> ForkServerContext:
    """How workers are forked."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["xcope.compare.run.preloaded"])
    return found


def start() -> None:
    """Start it, where there is no GPU (see `xcope.compare.run.pool.Worker`)."""
    if has_driver():
        return
    context()
    # where it cannot start, the workers cannot either, and say so
    with uninterrupted(), suppress(OSError):
        forkserver.ensure_running()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits, also in processes that are started: a terminal sends it to every one, and a
    worker must not die of it while it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
