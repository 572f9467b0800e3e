"""What a person sees while a run trains."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Is told of a run's progress; one reporter shows one run at a time."""

    def start(self, label: str, step: int, steps: int) -> None:
        """A run called ``label`` begins, or goes on, with ``step`` of ``steps`` updates done."""

    def step(self, step: int, loss: float) -> None:
        """``step`` updates are done; ``loss`` is that of the last."""

    def end(self) -> None:
        """Training is over: done, stopped or failed."""

    def note(self, line: str) -> None:
        """Something that a person should know, before training or after it."""


class Silent:
    """Shows nothing."""

    def start(self, label: str, step: int, steps: int) -> None:
        """Nothing."""

    def step(self, step: int, loss: float) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
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
    """A progress bar with loss, steps per second and time left."""

    def __init__(self, console: Console) -> None:
        self._progress = bars(console, "loss {task.fields[loss]}", "{task.fields[speed]} steps/s")

    def start(self, label: str, step: int, steps: int) -> None:
        """Show the bar."""
        self._pace = Pace(step)
        self._run = self._progress.add_task(label, total=steps, completed=step, loss="-", speed="-")
        self._progress.start()

    def step(self, step: int, loss: float) -> None:
        """Move the bar."""
        speed = f"{self._pace.speed(step):.1f}"
        self._progress.update(self._run, completed=step, loss=f"{loss:.4f}", speed=speed)

    def end(self) -> None:
        """Leave the bar as it is and give the line back."""
        self._progress.stop()

    def note(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Lines:
    """A plain line now and then, for logs and pipes."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self._console = console
        self._every = every

    def start(self, label: str, step: int, steps: int) -> None:
        """Print what begins."""
        self._pace, self._steps, self._last = Pace(step), steps, time.monotonic()
        self._print(f"{label}: step {step} of {steps}")

    def step(self, step: int, loss: float) -> None:
        """Print a line if the last one is ``every`` seconds old, or the run is done."""
        if time.monotonic() - self._last < self._every and step < self._steps:
            return
        self._last = time.monotonic()
        speed = self._pace.speed(step)
        left = (self._steps - step) / speed
        self._print(
            f"step {step}/{self._steps}  loss {loss:.4f}  {speed:.1f} steps/s  {left:.0f} s left"
        )

    def end(self) -> None:
        """Nothing: the last line stands."""

    def note(self, line: str) -> None:
        """Print the line."""
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Pace:
    """Steps per second since ``step``."""

    def __init__(self, step: int) -> None:
        self._step, self._began = step, time.monotonic()

    def speed(self, step: int) -> float:
        """Steps per second until ``step``; above 0 if a step was done."""
        return (step - self._step) / max(time.monotonic() - self._began, 1e-9)


def reporter() -> Reporter:
    """A bar on a terminal, plain lines elsewhere; on stderr, so that stdout can be piped."""
    console = Console(file=sys.stderr)
    return Bar(console) if sys.stderr.isatty() else Lines(console)
