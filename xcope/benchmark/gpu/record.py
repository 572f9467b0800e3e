"""What was found so far: told and on disk as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from xcope.benchmark.gpu.compare import Compared
from xcope.benchmark.gpu.figures import MILLISECONDS, Figure
from xcope.benchmark.gpu.measure import Timing
from xcope.benchmark.tables import write_csv

COMPARED = ("part", "case", "backend", "dtype", "tensor", "error", "plain_error",
            "flash_error", "bar", "ok",
            "failure")  # fmt: skip
MEASURED = (
    *("part", "name", "over", "shape", "n", "dtype", "milliseconds", "over_milliseconds", "ratio"),
    *("limit", "verdict", "mebibytes", "over_mebibytes", "error"),
)


class OutOfTimeError(Exception):
    """Nothing new is to begin."""


@dataclass
class Record:
    """All that a check found.

    Args:
        out: the folder that it is written to.
        command: what to type to run it again.
        device: on which it runs.
        parts: those that were asked for.
        quick: whether the shapes are too small to judge costs by.
        minutes: after which nothing new begins.

    Attributes:
        unfinished: why something is missing, a reason each.
    """

    out: Path
    command: str
    device: torch.device
    parts: Sequence[str]
    quick: bool
    minutes: float
    compared: list[Compared] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    @property
    def failures(self) -> list[Compared]:
        """What is not correct."""
        return [one for one in self.compared if not one.ok]

    @property
    def missed(self) -> list[Figure]:
        """Bars that are not met."""
        return [one for one in self.figures if not one.met]

    def say(self, text: object) -> None:
        """With the seconds since the beginning."""
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    def compare(self, found: Sequence[Compared]) -> None:
        """Keep the tensors of a case; told is the worst."""
        if found:
            self.say(worst(found))
            self.compared += found
            write_csv(self.out / "correctness.csv", COMPARED, map(_compared, self.compared))
            self._check_time()

    def measure(self, figure: Figure) -> None:
        """Keep and tell a figure."""
        self.say(figure)
        self.figures.append(figure)
        write_csv(self.out / "benchmark.csv", MEASURED, map(_figure, self.figures))
        self._check_time()

    def leave(self, reason: str) -> None:
        """Tell and keep why something is missing."""
        self.say(reason)
        self.unfinished.append(reason)

    def _check_time(self) -> None:
        if self.seconds > 60 * self.minutes:
            raise OutOfTimeError(f"stopped after {self.minutes:g} minutes")


def worst(found: Sequence[Compared]) -> Compared:
    """Of one case: what failed, or comes nearest to its bar."""

    def share(one: Compared) -> float:
        if one.error is None or not one.bar or one.error != one.error:  # no number at all
            return 0.0 if one.ok else float("inf")
        return one.error / one.bar

    return max(found, key=share)


def _compared(one: Compared) -> list[object]:
    errors = (None if x is None else f"{x:.3e}" for x in (one.error, one.plain, one.flash, one.bar))
    head = (one.part, one.case, one.backend, one.dtype, one.tensor)
    return [*head, *errors, one.ok, one.failure]


def _figure(one: Figure) -> list[object]:
    def ms(timing: Timing) -> str | None:
        return None if timing.seconds is None else f"{MILLISECONDS * timing.seconds:.4g}"

    def mib(timing: Timing) -> str | None:
        return None if timing.mebibytes is None else f"{timing.mebibytes:.1f}"

    ratio = None if one.ratio is None else f"{one.ratio:.3f}"
    return [
        *(one.part, one.name, one.over, one.shape, one.n, one.dtype),
        *(ms(one.mine), ms(one.other), ratio, one.bound if one.has_bar else None, one.verdict),
        *(mib(one.mine), mib(one.other), one.error),
    ]
