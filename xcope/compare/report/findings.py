"""All that the reports tell, gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from xcope.compare.report.wording import words
from xcope.compare.run.protocol import Statement, protocol
from xcope.compare.run.results import Outcome
from xcope.compare.run.tuning import Pick
from xcope.compare.stats.summary import Summary
from xcope.config import Config
from xcope.environment import system


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
class Findings:
    """What a comparison found.

    Args:
        outcomes: of the sweep's runs, in order.
        summaries: one per task.
        picks: what was tuned.
    """

    config: Config
    outcomes: Sequence[Outcome]
    summaries: Sequence[Summary]
    picks: Sequence[Pick]
    how: Circumstances

    @property
    def title(self) -> str:
        """``Positional schemes on flip flop, counting``."""
        return f"Positional schemes on {', '.join(words(one.task) for one in self.summaries)}"

    @cached_property
    def protocol(self) -> list[Statement]:
        """What makes it fair."""
        return protocol(self.config, self.summaries, self.picks)

    @property
    def failed(self) -> list[Outcome]:
        """The runs without results, those of tuning last."""
        return [*(one for one in self.outcomes if not one.ok), *self.failed_tuning]

    @property
    def failed_tuning(self) -> list[Outcome]:
        """The tuning runs without results."""
        return [one for pick in self.picks for c in pick.candidates for one in c.failed]

    @property
    def failures(self) -> str:
        """``2 runs failed, 1 tuning run failed``; empty where none did."""
        tuning = len(self.failed_tuning)
        counts = [(len(self.failed) - tuning, "run"), (tuning, "tuning run")]
        return ", ".join(f"{n} {what}{'s' * (n > 1)} failed" for n, what in counts if n)
