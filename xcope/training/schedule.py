"""The learning rate of each update: a warm-up and a cosine, also of runs that were made longer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xcope.config import TrainConfig
from xcope.config.schema import Longer


def learning_rate(step: int, train: TrainConfig) -> float:
    """The rate of update ``step`` (from 0): a linear warm-up to ``lr``, then a cosine towards 0.

    The warm-up takes the share ``train.warmup`` of all updates; 0 would be reached one update
    after the last. Of a run that was made longer see `cycle`.
    """
    begin, end = cycle(step, train.longer, train.steps)
    warmup = round(train.warmup * (end - begin))
    if step - begin < warmup:
        return train.lr * (step - begin + 1) / warmup
    progress = (step - begin - warmup) / (end - begin - warmup)
    return train.lr * (1 + math.cos(math.pi * progress)) / 2


def cycle(step: int, longer: Sequence[Longer], steps: int) -> tuple[int, int]:
    """First and last + 1 of the updates whose warm-up and cosine update ``step`` belongs to.

    A run of 800 updates that was made 1200 long has, after ``rewarm``, the cycles 0 … 800 and
    800 … 1200. After ``stretch``, when 800 were done, it has the rates of a run of 800 for these,
    and for the others those of a run of 1200.
    """
    if not longer:
        return 0, steps
    *before, last = longer
    if last.how == "rewarm" and step >= last.steps:
        return last.steps, steps
    if last.how == "stretch" and step >= last.after:
        return cycle(last.after, before, last.steps)[0], steps
    return cycle(step, before, last.steps)
