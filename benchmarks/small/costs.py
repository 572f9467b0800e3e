"""What is measured, and the bars: ratios of what runs side by side, and seconds of commands."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from benchmarks.cope.costs import variants_of
from benchmarks.cope.workloads import Attention, forward, forward_backward, ours, sdpa
from benchmarks.measure import CPU, Bar, Work, paired, ratio, rounds, seconds
from benchmarks.small.sweep import quickstart_sweep
from benchmarks.small.workloads import (
    PLAIN,
    REPO,
    Rows,
    Scale,
    Size,
    called,
    contenders,
    theirs,
)
from xcope.positions import schemes

COPE_OVER_ROTARY = ((1.2, 1.1), (1.15, 1.08), (1.06, 1.03))
"""Limit and goal of a train step, for each size."""
OVER_THEIRS = (1.02, 1.0)
"""Of a train step under every other scheme over x-transformers' own."""
OVER_PLAIN = (1.03, 1.0)
"""Of a train step without positions over the plain model's."""
OVER_SDPA = (2.0, 1.7, 1.5, None, 1.3, 1.2)
"""Limit of CoPE attention, for each length."""
GOAL_OVER_SDPA = 1.3
OVER_COPE = (1.35, 1.2)
"""Of variants of CoPE over plain CoPE."""
BARRED = ("cope_sep_keys", "cope_val_gates", "cope_talking_heads")
"""The variants that have bars."""
OVER_RUNS = (1.1, 1.05)
"""Of a sweep over its runs' own seconds, divided by the cores."""
SECONDS = (1.0, 0.5)
"""Of a command that has nothing to compute."""

Bounds = tuple[float | None, float | None]
"""Limit and goal, as of `Bar`."""


@dataclass(frozen=True)
class Pair:
    """Two works and the bar of the one's time over the other's.

    Args:
        name: of the bar.
        top, bottom: what is measured, and over what.
        make: the two works.
        repeats: of the measurement.
        limit, goal: as of `Bar`.
    """

    name: str
    top: str
    bottom: str
    make: Callable[[], tuple[Work, Work]]
    repeats: int
    limit: float | None
    goal: float | None

    def bar(self, found: float) -> Bar:
        """The bar of a measured ratio."""
        return Bar(self.name, found, self.limit, self.goal, parts=self.name)


# -- train steps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Train steps of all models of a size.

    Args:
        size: of the models.
        groups: of what ran side by side; name among the contenders → seconds of each run.
        pairs: that have bars.
    """

    size: Size
    groups: Sequence[Mapping[str, Sequence[float]]]
    pairs: Sequence[Pair]

    @property
    def names(self) -> list[str]:
        """All contenders."""
        return list(dict.fromkeys(name for taken in self.groups for name in taken))

    def seconds(self, name: str) -> float:
        """Median of all runs of a contender."""
        return statistics.median(t for taken in self.groups for t in taken.get(name, ()))

    def over(self, top: str, bottom: str = PLAIN) -> float:
        """How many times as long the one takes as the other, side by side where they ran so."""
        for taken in self.groups:
            if top in taken and bottom in taken:
                return paired(taken[top], taken[bottom])
        return self.seconds(top) / self.seconds(bottom)

    @property
    def bars(self) -> list[Bar]:
        """CoPE over rotary, none over the plain model, then ours over x-transformers' own."""
        return [pair.bar(self.over(pair.top, pair.bottom)) for pair in self.pairs]

    def __str__(self) -> str:
        lines = (
            f"  {name:32} {1000 * self.seconds(name):8.2f} ms  {self.over(name):5.2f}"
            for name in self.names
        )
        title = f"train step, {self.size}, over the plain model:"
        return "\n".join((title, *lines, *map(str, self.bars)))


def train_steps(scale: Scale) -> Iterator[Steps]:
    """For each size, models under all schemes.

    Four groups run side by side: what CoPE and no positions are held to; ours and x-transformers'
    under the schemes that it has; ours under the others; and, once, x-transformers' CoPE, which
    holds (b h n n) tensors and takes up to ten times as long as the rest.
    """
    known = {name: one.counterpart() for name, one in schemes().items()}
    contextual = [name for name, its in known.items() if its and "attn_use_cope" in its[0]]
    shared = [name for name, its in known.items() if its is not None and name not in contextual]
    close = [PLAIN, "none", "rotary", "cope"]
    beside = [PLAIN, *(one for name in shared for one in (name, theirs(name)))]
    others = [PLAIN, *(name for name in known if name not in (*shared, "cope"))]
    compared = [("none", PLAIN, OVER_PLAIN)]
    compared += [
        (name, theirs(name), OVER_THEIRS) for name in (*shared, *contextual) if name != "cope"
    ]
    for size, bounds in zip(scale.sizes, COPE_OVER_ROTARY, strict=True):
        groups = [
            rounds(contenders(size, names), repeats)
            for names, repeats in ((close, size.repeats), (beside, size.slow), (others, size.slow))
        ]
        far = contenders(size, [theirs(name) for name in contextual])
        groups.append({name: [seconds(CPU, work)] for name, work in far.items()})
        pairs = [_train_pair(size, *one) for one in (("cope", "rotary", bounds), *compared)]
        yield Steps(size, groups, pairs)


def _train_pair(size: Size, top: str, bottom: str, bounds: Bounds) -> Pair:
    def make() -> tuple[Work, Work]:
        works = contenders(size, (top, bottom))
        return works[top], works[bottom]

    titles = {"cope": "CoPE", PLAIN: "the plain model", theirs(top): "x-transformers' own"}
    mine, other = (titles.get(name, name) for name in (top, bottom))
    name = f"train step, {size}: {mine} over {other}"
    return Pair(name, top, bottom, make, size.repeats, *bounds)


# -- attention -----------------------------------------------------------------------------------


def attention_pairs(scale: Scale) -> Iterator[Pair]:
    """CoPE attention over SDPA, and its variants over plain CoPE."""
    for rows, limit in zip(scale.rows, OVER_SDPA, strict=True):
        goal = min(GOAL_OVER_SDPA, limit or GOAL_OVER_SDPA)
        yield _over_sdpa(rows, "", rows.tensors(), (limit, goal))
    rows = scale.rows[-1]
    never, longest = rows.tensors(few_gates=True), rows.tensors(max_pos=rows.n)
    yield _over_sdpa(rows, ", never saturating", never, (1.6, 1.4))
    yield _over_sdpa(rows, f", max_pos {rows.n}", longest, (2.0, 1.6))
    yield _over_sdpa(rows, ", forward only", rows.tensors(), (1.25, 1.15), forward)
    for rows in (scale.rows[0], scale.rows[-1]):
        usual = rows.tensors()
        plain = ("plain CoPE", partial(forward_backward, ours, usual))
        for title, attention, given in variants_of(usual):
            bounds = OVER_COPE if any(name in title for name in BARRED) else (None, None)
            variant = (title, partial(forward_backward, attention, given))
            yield _attention_pair(rows, "", variant, plain, bounds)


def _over_sdpa(
    rows: Rows,
    case: str,
    given: list[Tensor],
    bounds: Bounds,
    run: Callable[[Attention, list[Tensor]], None] = forward_backward,
) -> Pair:
    cope, sdpa_ = ("CoPE", partial(run, ours, given)), ("SDPA", partial(run, sdpa, given))
    return _attention_pair(rows, case, cope, sdpa_, bounds)


def _attention_pair(
    rows: Rows, case: str, top: tuple[str, Work], bottom: tuple[str, Work], bounds: Bounds
) -> Pair:
    name = f"attention, {rows}{case}: {top[0]} over {bottom[0]}"
    return Pair(name, top[0], bottom[0], lambda: (top[1], bottom[1]), rows.repeats, *bounds)


def attention_bars(pairs: Iterable[Pair]) -> Iterator[Bar]:
    """The bars of attention alone."""
    for pair in pairs:
        yield pair.bar(ratio(*pair.make(), pair.repeats))


# -- commands ------------------------------------------------------------------------------------


def command_bars(scale: Scale) -> Iterator[Bar]:
    """A whole sweep over its runs; seconds of commands that have nothing to compute.

    Each in a fresh process.
    """
    with tempfile.TemporaryDirectory() as folder:
        if scale.again is not None:
            whole = quickstart_sweep(Path(folder) / "quickstart")
            name = "quickstart on 2 cores, over half of its runs' own seconds"
            yield Bar(name, whole.ratio, *OVER_RUNS)
        calls = {"xcope --badflag": (["--badflag"], 2), "xcope --help": (["--help"], 0)}
        if scale.again is not None:
            config = str(REPO / "configs" / "quickstart.yaml")
            sweep = ["compare", config, *scale.again, "--out", str(Path(folder) / "sweep")]
            called(sweep)
            calls["xcope compare, a finished sweep called again"] = (sweep, 0)
        for name, (arguments, code) in calls.items():
            called(arguments, code)
            taken = [called(arguments, code) for _ in range(scale.calls)]
            yield Bar(f"{name}: seconds", statistics.median(taken), *SECONDS)
