"""What a person sees while a run trains and is measured."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COMPILING = logging.getLogger("xcope.ops.compiled.runtime")
"""Says that kernels are being compiled, when they are."""


class Reporter(Protocol):
    """Is told of a run's progress; one reporter shows one run at a time."""

    def note(self, line: str) -> None:
        """Something to know before the run begins."""

    def warn(self, line: str) -> None:
        """Something that went wrong, without which the run goes on."""

    def start(self, label: str, step: int, steps: int) -> None:
        """A run called ``label`` begins, or goes on, with ``step`` of ``steps`` updates done."""

    def step(self, step: int, loss: float) -> None:
        """``step`` updates are done; ``loss`` is that of the last."""

    def end(self) -> None:
        """Training is over: done, stopped or failed."""

    def measured(self, split: str, batch: int, batches: int) -> None:
        """``batch`` of the ``batches`` of a test split are measured."""


class Silent:
    """Shows nothing."""

    def note(self, line: str) -> None:
        """Nothing."""

    def warn(self, line: str) -> None:
        """A warning of Python's."""
        warnings.warn(line, stacklevel=2)

    def start(self, label: str, step: int, steps: int) -> None:
        """Nothing."""

    def step(self, step: int, loss: float) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def measured(self, split: str, batch: int, batches: int) -> None:
        """Nothing."""


def bars(console: Console, *fields: str) -> Progress:
    """Bars with a description, how many are done, further texts, and the time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        *(TextColumn(field, markup=False) for field in fields),
        TimeRemainingColumn(),
        console=console,
    )


class Bar:
    """A progress bar with loss, steps per second and time left, and one for the test splits."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = bars(console, "loss {task.fields[loss]}", "{task.fields[speed]}")
        self._compiling = _Listener(self._say_compiling)
        self._measuring: Progress | None = None

    def note(self, line: str) -> None:
        """Print it."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print it above the bar."""
        self.note(f"warning: {line}")

    def start(self, label: str, step: int, steps: int) -> None:
        """Show the bar."""
        self._pace = Pace(step)
        self._run = self._progress.add_task(label, total=steps, completed=step, loss="-", speed="")
        self._progress.start()
        self._compiling.listen()

    def step(self, step: int, loss: float) -> None:
        """Move the bar."""
        speed = self._pace.speed(step)
        text = "" if speed is None else f"{speed:.1f} steps/s"
        self._progress.update(self._run, completed=step, loss=f"{loss:.4f}", speed=text)

    def end(self) -> None:
        """Leave the bar as it is and give the line back."""
        self._compiling.stop()
        self._progress.stop()

    def measured(self, split: str, batch: int, batches: int) -> None:
        """Move the bar of a test split, which goes away when it is done."""
        if self._measuring is None:
            self._measuring = bars(self._console)
            self._split = self._measuring.add_task(f"measuring {split}", total=batches)
            self._measuring.live.transient = True
            self._measuring.start()
        self._measuring.update(self._split, completed=batch)
        if batch == batches:
            self._measuring.stop()
            self._measuring = None

    def _say_compiling(self) -> None:
        self._progress.update(self._run, speed="compiling kernels, once")


class Lines:
    """A plain line now and then, for logs and pipes."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self._console = console
        self._every = every
        self._last = time.monotonic()
        self._compiling = _Listener(lambda: self.note("compiling kernels, once"))

    def note(self, line: str) -> None:
        """Print it."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print it."""
        self.note(f"warning: {line}")

    def start(self, label: str, step: int, steps: int) -> None:
        """Print what begins."""
        self._pace, self._steps, self._last = Pace(step), steps, time.monotonic()
        self.note(f"{label}: step {step} of {steps}")
        self._compiling.listen()

    def step(self, step: int, loss: float) -> None:
        """Print a line if the last one is ``every`` seconds old, or the run is done.

        The time left is told as soon as a step after the first is measured.
        """
        speed = self._pace.speed(step)
        if step < self._steps and not self._is_due():
            return
        line = f"step {step}/{self._steps}  loss {loss:.4f}"
        if speed is not None:
            line += f"  {speed:.1f} steps/s  {(self._steps - step) / speed:.0f} s left"
        self.note(line)

    def end(self) -> None:
        """The last line stands."""
        self._compiling.stop()
        self._last = time.monotonic()

    def measured(self, split: str, batch: int, batches: int) -> None:
        """Print a line if the last one is ``every`` seconds old."""
        if batch < batches and self._is_due():
            self.note(f"measuring {split}: batch {batch} of {batches}")

    def _is_due(self) -> bool:
        due = time.monotonic() - self._last >= self._every
        if due:
            self._last = time.monotonic()
        return due


class Pace:
    """Steps per second after the first step, in which kernels are compiled or loaded."""

    def __init__(self, step: int) -> None:
        self._first = step + 1
        self._began: float | None = None

    def speed(self, step: int) -> float | None:
        """Steps per second until ``step``; None before two are done."""
        if self._began is None:
            self._first, self._began = step, time.monotonic()
        if step == self._first:
            return None
        return (step - self._first) / max(time.monotonic() - self._began, 1e-9)


class _Listener(logging.Handler):
    """Calls a function when kernels begin to be compiled."""

    def __init__(self, say: Callable[[], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        self._say()

    def listen(self) -> None:
        """Begin."""
        COMPILING.addHandler(self)
        COMPILING.setLevel(logging.INFO)

    def stop(self) -> None:
        """End."""
        COMPILING.removeHandler(self)


def reporter() -> Reporter:
    """A bar on a terminal, plain lines elsewhere; on stderr, so that stdout can be piped."""
    console = Console(file=sys.stderr)
    return Bar(console) if sys.stderr.isatty() else Lines(console)
