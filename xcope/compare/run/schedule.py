"""Which runs of a sweep train now: the longest first, so that no core is idle before the end.

Five runs of a minute on two cores take three minutes one after another, and the last of them leaves
a core idle. Here one of the first is held up half-way between two of its steps, for the last to
begin, and goes on when a core is free: two and a half minutes. No run has more threads for it, and
none computes anything else than it would alone (McNaughton 1959 shows that this is the least time).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from xcope.compare.run.plan import Run
from xcope.config import Config, build_task
from xcope.modules import plan_of
from xcope.positions import Slot

COSTS = {Slot.ROTATION: 1.05, Slot.BIAS: 1.05, Slot.ATTEND: 1.1}
"""About what a step costs with a scheme of a slot, over one without; until steps are measured."""
LEAST = 1.0
"""Seconds that holding a run up has to save."""
SHARE = 0.05
"""Of the later run's seconds, that it has to save."""


def work(config: Config) -> float:
    """About how long a run takes, in units of its own: training steps × what a step costs.

    Only how runs compare matters, and only until they are measured.
    """
    model, train = config.model, config.train
    n = build_task(config).seq_len("train")
    slots = {one.slot for one in plan_of(model.position, model.flags).schemes}
    scheme = max([1.0, *(cost for slot, cost in COSTS.items() if slot in slots)])
    # per token and layer: what the matrices multiply, then what attention does
    layer = 12 * model.dim**2 + 2 * n * model.dim
    return train.steps * train.batch_size * n * model.depth * layer * scheme


@dataclass
class Course:
    """How far a run is.

    Args:
        work: see `work`.
        pace: seconds of a step; None before one is measured.
        since: step and time from which it is measured: when the run began, or went on.
    """

    run: Run
    work: float
    step: int = 0
    pace: float | None = None
    since: tuple[int, float] | None = None

    @property
    def steps(self) -> int:
        """All that it has."""
        return self.run.config.train.steps

    @property
    def kind(self) -> tuple[str, str, int]:
        """Runs that differ in their seed alone have the same."""
        return self.run.task, self.run.variant, self.steps

    @property
    def per_work(self) -> float:
        """Measured seconds over `work`."""
        return (self.pace or 0.0) * self.steps / self.work

    def moved(self, step: int, now: float) -> None:
        """Take note of how far it is."""
        self.step = step
        if self.since is None:
            self.since = step, now
        elif step > self.since[0]:
            self.pace = (now - self.since[1]) / (step - self.since[0])


@dataclass
class Schedule:
    """Which runs train now, and which of them makes room for another.

    Args:
        runs: in this order those begin that take equally long.
        jobs: runs that train at a time.
        clock: seconds.
    """

    runs: Sequence[Run]
    jobs: int
    clock: Callable[[], float] = time.monotonic
    busy: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._courses = {run.name: Course(run, work(run.config)) for run in self.runs}
        self._paces = dict[tuple[str, str, int], float]()  # of runs that ended, by their kind
        self._per_work = list[float]()

    def next(self) -> Run | None:
        """The run that begins or goes on now: the longest; None if there is no place or none."""
        if len(self.busy) >= self.jobs or len(self.busy) == len(self._courses):
            return None
        idle = {name: time for name, time in self.left().items() if name not in self.busy}
        # the first of those that are equal; in a single place no order is better than the given one
        name = max(idle, key=lambda name: idle[name]) if self.jobs > 1 else next(iter(idle))
        self.busy.add(name)
        return self._courses[name].run

    def moved(self, run: Run, step: int) -> None:
        """A run has begun, or done another step."""
        self._courses[run.name].moved(step, self.clock())

    def held(self, run: Run) -> None:
        """A run has made room."""
        self.busy.remove(run.name)
        self._courses[run.name].since = None

    def ended(self, run: Run) -> None:
        """A run is over."""
        self.busy.discard(run.name)
        course = self._courses.pop(run.name)
        if course.pace is not None:
            self._paces[course.kind] = course.pace
            self._per_work.append(course.per_work)

    def left(self) -> dict[str, float]:
        """Run → about how many seconds it still takes; mere units before any is measured."""
        measured = [one for one in self._courses.values() if one.pace is not None]
        per_work = [*self._per_work, *(one.per_work for one in measured)]
        usual = statistics.fmean(per_work) if per_work else 1.0
        paces = self._paces | {one.kind: one.pace for one in measured if one.pace is not None}
        return {
            name: (one.steps - one.step)
            * (one.pace or paces.get(one.kind) or usual * one.work / one.steps)
            for name, one in self._courses.items()
        }

    def makes_room(self) -> Run | None:
        """The run that is to be held up; else one that waits would end after all others."""
        if len(self._courses) > 4 * self.jobs:  # long before the end nothing is urgent
            return None
        if any(self._courses[name].pace is None for name in self.busy):
            return None
        left = self.left()
        busy = {name: seconds for name, seconds in left.items() if name in self.busy}
        idle = {name: seconds for name, seconds in left.items() if name not in self.busy}
        name = to_hold(busy, idle, self.jobs)
        return None if name is None else self._courses[name].run


def to_hold(busy: Mapping[str, float], idle: Mapping[str, float], jobs: int) -> str | None:
    """Which of the busy runs is to be held up now for an idle one to begin, if any is.

    All could end together after the mean of what is left for each place, or with the longest. An
    idle run that takes as long as that begins now or makes the whole later; the busy one with the
    least left gives its place, unless it ends soon anyway.

    Args:
        busy: run → seconds that it still takes; as many as there are places.
        idle: the same of those that wait.
        jobs: places.
    """
    if not idle or len(busy) < jobs:
        return None
    left = [*busy.values(), *idle.values()]
    end = max(*left, sum(left) / jobs)
    latest = max(idle.values())
    name = min(busy, key=lambda name: busy[name])
    saved = min(busy[name], latest - busy[name])
    urgent = latest >= end and saved > max(LEAST, SHARE * latest)
    return name if urgent else None
