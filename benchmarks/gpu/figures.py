"""A figure: a contender measured beside another, and the bar that it may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.cope.workloads import MAX_POS, Attention, forward, forward_backward, tensors
from benchmarks.gpu.workloads import Scale, Shape
from benchmarks.measure import Bar, Timing, Work, timings
from benchmarks.report import MILLISECONDS

Figures = Iterator["Figure"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One contender beside another.

    Args:
        part: of the benchmark, as its command line calls it.
        name: of the contender and what it does.
        over: the other.
        shape: of the inputs, or of the model.
        n: tokens of a row.
        dtype: of the tensors.
        mine, other: their time and memory.
        limit: what the ratio of times must not exceed (or, ``at_least``, not fall below).
        inverse: the ratio is the other's time over the contender's.
        must_run: whether it is a bar that the contender runs at all.
    """

    part: str
    name: str
    over: str
    shape: str
    n: int
    dtype: str
    mine: Timing
    other: Timing
    limit: float | None = None
    inverse: bool = False
    must_run: bool = False

    @property
    def ratio(self) -> float | None:
        """The ratio of the times."""
        mine, other = self.mine.seconds, self.other.seconds
        if mine is None or other is None:
            return None
        return other / mine if self.inverse else mine / other

    @property
    def has_bar(self) -> bool:
        """Whether it has a bar."""
        return self.limit is not None or self.must_run

    @property
    def met(self) -> bool:
        """Whether it keeps to its bar, if it has one."""
        if self.limit is None:
            return not self.must_run or self.mine.seconds is not None
        return self.ratio is not None and self._bar(self.ratio, self.limit).met

    @property
    def bound(self) -> str:
        """The bar in words."""
        if self.limit is None:
            return "runs" if self.must_run else "–"
        return self._bar(0.0, self.limit).text(self.limit)

    @property
    def verdict(self) -> str:
        """``met`` or not, and what went wrong."""
        told = "" if not self.has_bar else "met" if self.met else "NOT MET"
        return ": ".join(filter(None, (told, self.error)))

    @property
    def error(self) -> str:
        """The errors of both contenders; empty for none."""
        errors = {self.name: self.mine.error, self.over: self.other.error}
        return ", ".join(f"{name}: {error}" for name, error in errors.items() if error)

    def _bar(self, ratio: float, limit: float) -> Bar:
        return Bar(self.name, ratio, limit, at_least=self.inverse)

    def __str__(self) -> str:
        times = " / ".join(map(milliseconds, (self.mine.seconds, self.other.seconds)))
        told = f"{self.name} over {self.over}" if not self.inverse else f"{self.over} over ours"
        told = self.name if self.name == self.over else told
        ratio = "" if self.ratio is None else f" = {self.ratio:.2f}"
        bar = f" {self.bound}" if self.has_bar else ""
        return f"{told}, {self.shape}: {times} ms{ratio}{bar} {self.verdict}".rstrip()


def milliseconds(seconds: float | None) -> str:
    """A time for people: three digits, – for None."""
    if seconds is None:
        return "–"
    ms = MILLISECONDS * seconds
    return f"{ms:.3g}" if ms < MILLISECONDS else f"{ms:.0f}"


@dataclass(frozen=True)
class Bench:
    """Where figures are taken, and on what.

    Args:
        device: where attention and models run.
        scale: how large they are.
        dtype: of attention's tensors.
    """

    device: torch.device
    scale: Scale
    dtype: torch.dtype = torch.bfloat16

    def tensors(
        self, shape: Shape, max_pos: int = MAX_POS, few_gates: bool = False
    ) -> list[Tensor]:
        """`benchmarks.cope.workloads.tensors` of this shape."""
        return tensors(shape.n, max_pos, few_gates, b=shape.b, h=shape.h, d=shape.d,
                       device=self.device, dtype=self.dtype)  # fmt: skip

    def figure(
        self,
        part: str,
        name: str,
        over: str,
        shape: Shape,
        mine: Timing,
        other: Timing,
        *,
        limit: float | None = None,
        inverse: bool = False,
        must_run: bool = False,
    ) -> Figure:
        """A figure of attention on such inputs, in this dtype; arguments as of `Figure`."""
        return Figure(
            part=part,
            name=name,
            over=over,
            shape=str(shape),
            n=shape.n,
            dtype=str(self.dtype).removeprefix("torch."),
            mine=mine,
            other=other,
            limit=limit,
            inverse=inverse,
            must_run=must_run,
        )


def attention_works(
    bench: Bench,
    contenders: Mapping[str, Attention],
    given: Callable[[], list[Tensor]],
    backward: bool = True,
    repeats: int = 0,
) -> dict[str, Timing]:
    """Time and memory of attentions on the same inputs, which the first that runs has made."""
    made: list[list[Tensor]] = []

    def make(attention: Attention) -> Work:
        if not made:
            made.append(given())
        return partial(forward_backward if backward else forward, attention, made[0])

    makers = {name: partial(make, attention) for name, attention in contenders.items()}
    return timings(bench.device, makers, repeats or bench.scale.repeats)
