"""Cases side by side, each in one of several processes: compiling takes most of their time.

A kernel that faults spoils its process for CUDA: the case has failed, and a fresh process goes on
with the others.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import ClassVar

import torch

from benchmarks.gpu.compare import Case, Compared, attempt, failed
from benchmarks.measure import Work


def side_by_side(cases: Sequence[Case], jobs: int, seconds: float) -> Iterator[list[Compared]]:
    """Compute cases in several processes; yield the results of each as it ends.

    Args:
        cases: those of one family go to one process, as far as possible.
        jobs: how many processes; 0: all in this one.
        seconds: cases that have not ended by then have failed.
    """
    if not jobs:
        yield from map(attempt, cases)
        return
    waiting = _by_family(cases)
    deadline = time.monotonic() + seconds
    workers = [Worker() for _ in range(min(jobs, len(waiting)))]
    try:
        idle = list(workers)
        while waiting or any(worker.case for worker in workers):
            while idle and waiting:
                idle.pop().take(waiting)
            busy = {worker.connection: worker for worker in workers if worker.case}
            ready = wait(list(busy), max(0.0, deadline - time.monotonic()))
            if not ready:
                late = [worker.case for worker in workers if worker.case]
                late += [case for family in waiting for case in family]
                yield [failed(case, f"not done after {seconds:.0f} s") for case in late]
                return
            for connection in ready:
                worker = next(w for c, w in busy.items() if c is connection)
                results, usable = worker.results()
                yield results
                if not usable:
                    workers.remove(worker)
                    worker.end()
                    worker = Worker(worker.family)
                    workers.append(worker)
                idle.append(worker)
    finally:
        for worker in workers:
            worker.end()


def _by_family(cases: Sequence[Case]) -> deque[deque[Case]]:
    """The cases of each family, in the order in which they are given."""
    families: dict[str, deque[Case]] = {}
    for case in cases:
        families.setdefault(case.family, deque()).append(case)
    return deque(families.values())


class Worker:
    """A process that is handed one case after the other.

    Args:
        family: of the cases that it should take first.

    Attributes:
        case: the one that it computes.
    """

    def __init__(self, family: str = "") -> None:
        self.family = family
        self.case: Case | None = None
        context = multiprocessing.get_context("spawn")  # a fork could not use CUDA
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def take(self, waiting: deque[deque[Case]]) -> None:
        """Begin a case, if there is one of the family whose kernels it has compiled."""
        families = [cases for cases in waiting if cases[0].family == self.family]
        cases = families[0] if families else waiting[0]
        waiting.remove(cases)
        self.case = cases.popleft()
        self.family = self.case.family
        if cases:
            waiting.append(cases)  # after the families that nobody has begun
        with suppress(ConnectionError):  # it has ended, as `results` will find
            self.connection.send(self.case)

    def results(self) -> tuple[list[Compared], bool]:
        """The results of its case, and whether the process can take another."""
        case, self.case = self.case, None
        if case is None:
            return [], True
        try:
            results, usable = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            return [failed(case, f"its process ended with {self._process.exitcode}")], False
        return results, usable

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        connection.send((attempt(case), _usable()))


def _usable() -> bool:
    """Whether CUDA still answers; after a kernel that faults it does not."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # the processes share the memory
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True)
class Warm:
    """A case that compares nothing: what Inductor and Triton compile for it stays on disk.

    What fails here fails again, and is reported, where it is measured.

    Args:
        name: of what is compiled.
        make: gives the work whose first run compiles.
    """

    name: str
    make: Callable[[], Work]
    part: ClassVar[str] = "warm"
    backend: ClassVar[str] = ""
    dtype: ClassVar[str] = ""

    @property
    def family(self) -> str:
        """One of its own, so that no two of these wait for one another."""
        return self.name

    def compared(self) -> Iterator[Compared]:
        """Run it once; there is nothing to compare."""
        with suppress(Exception):
            self.make()()
        yield from ()
