"""The bars: what must not cost more than so many times something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from xcope.benchmark.cope.workloads import (
    MAX_POS,
    Attention,
    Model,
    Scale,
    decoding_steps,
    forward,
    forward_backward,
    memory,
    ours,
    sdpa,
    soft_onehot,
    tensors,
    train_steps,
)
from xcope.benchmark.measure import ratio

LINEAR = 0.1  # growth by the factor of the lengths, give or take


@dataclass(frozen=True)
class Bar:
    """A measured ratio and what it must keep to.

    Args:
        limit: what it must not exceed (or, ``at_least``, not fall below).
        goal: what to go for, where there is more to go for.
        parts: the case of `xcope.benchmark.cope.breakdown` that says where its time
            or memory goes.
        growth: the ratio of the lengths, where the ratio is one of growth.
    """

    name: str
    ratio: float
    limit: float
    goal: float | None = None
    at_least: bool = False
    parts: str | None = None
    growth: int | None = None

    def keeps_to(self, bound: float) -> bool:
        return self.ratio >= bound if self.at_least else self.ratio <= bound

    @property
    def met(self) -> bool:
        return self.keeps_to(self.limit)

    @property
    def goal_met(self) -> bool:
        return self.goal is None or self.keeps_to(self.goal)

    def text(self, bound: float | None) -> str:
        """A limit or goal in words."""
        if bound is None:
            return "–"
        return f"{'≥' if self.at_least else '≤'} {bound:g}"

    @property
    def verdict(self) -> str:
        if not self.met:
            return "NOT MET"
        if self.growth:
            linear = self.ratio >= (1 - LINEAR) * self.growth
            return "met: linear" if linear else "met: sublinear"
        return "met" if self.goal_met else "met, goal missed"

    def __str__(self) -> str:
        bounds = f"{self.text(self.limit):7} goal {self.text(self.goal):7}"
        return f"{self.name:66} {self.ratio:6.2f}  {bounds} {self.verdict}"


def bars(upstream: Attention, scale: Scale, threads: int) -> Iterator[Bar]:
    """Every bar, one after the other; ``upstream`` is x-transformers' CoPE attention."""
    yield from _attention(upstream, scale)
    yield from _memory(scale, threads)
    yield from _models(scale)
    yield from _soft_onehot(scale)


def _attention(upstream: Attention, scale: Scale) -> Iterator[Bar]:
    usual, n = tensors(scale.n), scale.n
    cases = [
        ("max_pos 64", usual, 1.4, 1.2),
        ("max_pos 64, gates near 0", tensors(n, few_gates=True), 2.5, 1.8),
        (f"max_pos {n}", tensors(n, max_pos=n), 3.5, 2.5),
    ]
    for case, given, limit, goal in cases:
        mine, plain = (partial(forward_backward, f, given) for f in (ours, sdpa))
        name = f"fwd+bwd, {case}"
        yield Bar(f"{name}: over SDPA", ratio(mine, plain, scale.repeats), limit, goal, parts=name)

    name = "fwd+bwd, max_pos 64"
    theirs, mine = (partial(forward_backward, f, usual) for f in (upstream, ours))
    faster = ratio(theirs, mine, scale.slow)
    yield Bar(f"{name}: x-transformers' over ours", faster, 22, 27, at_least=True, parts=name)

    name = "fwd, max_pos 64"
    mine, plain = (partial(forward, f, usual) for f in (ours, sdpa))
    yield Bar(f"{name}: over SDPA", ratio(mine, plain, scale.repeats), 1.5, 1.2, parts=name)


def _memory(scale: Scale, threads: int) -> Iterator[Bar]:
    n = scale.n
    plain, mine = memory(sdpa, n, threads), memory(ours, n, threads)
    name = memory_name(MAX_POS)
    yield Bar(f"{name}: over SDPA", mine / plain, 1.5, 1.2, parts=name)
    never = memory(ours, n, threads, max_pos=n)
    name = memory_name(n)
    yield Bar(f"{name}: over SDPA", never / plain, 2.0, 1.2, parts=name)
    growth = memory(ours, 8 * n, threads) / mine
    yield Bar(f"peak memory: n {8 * n} over n {n}", growth, 8 * (1 + LINEAR), growth=8)


def _models(scale: Scale) -> Iterator[Bar]:
    for model, limit in ((scale.large, 1.6), (scale.small, 1.8)):
        name = train_name(model)
        steps = train_steps(model)
        cost = ratio(steps["cope"], steps["rotary"], 2 * scale.repeats)
        yield Bar(f"{name}: over rotary", cost, limit, 1.3, parts=name)
    steps = decoding_steps(scale.large, scale.n)
    cost = ratio(steps["cope"], steps["rotary"], 3 * scale.repeats)
    yield Bar(f"decoding step at context {scale.n}: over rotary", cost, 1.2, 1.05)


def memory_name(max_pos: int) -> str:
    return f"peak memory, max_pos {max_pos}"


def train_name(model: Model) -> str:
    return f"train step, {model.depth} layers, dim {model.dim}, n {model.n}, batch {model.batch}"


def _soft_onehot(scale: Scale) -> Iterator[Bar]:
    for case, few_gates in (("max_pos 64", False), ("max_pos 64, gates near 0", True)):
        given = tensors(scale.n, few_gates=few_gates)
        soft, linear = (partial(forward_backward, f, given) for f in (soft_onehot, ours))
        cost = ratio(soft, linear, scale.repeats)
        yield Bar(f"fwd+bwd, {case}: soft one-hot over interpolation", cost, 1.1)
