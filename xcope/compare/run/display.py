"""What a person sees while a comparison runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import TaskID

from xcope.compare.run.plan import Run
from xcope.compare.run.worker import Moved
from xcope.training.progress import bars


class Lines:
    """Context that is told what the runs do: it prints a line when one begins, has done another
    quarter of its steps, and ends.

    Args:
        console: where to print.
        runs: all runs of the comparison, in order: the lines number them.
    """

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        self._console = console
        self._number = {run.name: f"[{i}/{len(runs)}]" for i, run in enumerate(runs, 1)}
        self._began = dict[str, float]()
        self._quarter = dict[str, int]()
        self._waits = dict[str, float]()

    def moved(self, run: Run, progress: Moved) -> None:
        """Tell that a run began, or is further on."""
        quarter = 4 * progress.step // progress.steps
        if run.name not in self._began:
            self._began[run.name] = time.monotonic()
            self._line(run, f"begins at step {progress.step} of {progress.steps}")
        elif self._quarter[run.name] < quarter < 4 and progress.loss is not None:
            self._line(run, f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}")
        self._quarter[run.name] = quarter

    def waits(self, run: Run) -> None:
        """Tell that a run is held up for another."""
        self._waits[run.name] = time.monotonic()
        self._line(run, "waits, so that a longer one need not be the last")

    def goes_on(self, run: Run) -> None:
        """Tell that a run that was held up goes on."""
        self._began[run.name] += time.monotonic() - self._waits.pop(run.name)
        self._line(run, "goes on")

    def ended(self, run: Run, reason: str) -> None:
        """Tell that a run is done, or failed for a reason."""
        seconds = time.monotonic() - self._began.get(run.name, time.monotonic())
        self._line(run, f"FAILED: {reason}" if reason else f"done in {seconds:.0f} s")

    def note(self, line: str) -> None:
        """Print a line about something else."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, run: Run, text: str) -> None:
        self.note(f"{self._number[run.name]} {run.name}: {text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing."""


class Bars(Lines):
    """A bar for each run in hand, one for all of them, and a line for each that ended."""

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        super().__init__(console, runs)
        self._progress = bars(console, "{task.fields[loss]}")
        self._bars = dict[str, TaskID]()
        self._steps = {run.name: run.config.train.steps * run.complete for run in runs}
        total = sum(run.config.train.steps for run in runs)
        done = sum(self._steps.values())
        self._all = self._progress.add_task("all steps", total=total, completed=done, loss="")

    def moved(self, run: Run, progress: Moved) -> None:
        """Move its bar."""
        if run.name not in self._bars:
            self._began[run.name] = time.monotonic()
            self._bars[run.name] = self._progress.add_task(
                run.name, total=progress.steps, completed=progress.step, loss=""
            )
        loss = "" if progress.loss is None else f"loss {progress.loss:.4f}"
        self._progress.update(self._bars[run.name], completed=progress.step, loss=loss)
        self._steps[run.name] = progress.step
        self._progress.update(self._all, completed=sum(self._steps.values()))

    def ended(self, run: Run, reason: str) -> None:
        """Replace its bar by a line."""
        super().ended(run, reason)
        if run.name in self._bars:
            self._progress.remove_task(self._bars[run.name])

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bars as they are."""
        self._progress.stop()


def display(console: Console, runs: Sequence[Run]) -> Lines:
    """Bars on a terminal, plain lines elsewhere."""
    return Bars(console, runs) if console.is_terminal else Lines(console, runs)
