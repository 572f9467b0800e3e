"""What only ``--full`` measures: other heads, another dtype, every scheme's train step."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from xcope.benchmark.cope.workloads import Model
from xcope.benchmark.gpu.bars import attention_bars
from xcope.benchmark.gpu.figures import Figure, Figures
from xcope.benchmark.gpu.measure import timings
from xcope.benchmark.gpu.workloads import Bench, train_step
from xcope.benchmark.schemes.workloads import position
from xcope.positions import schemes

WIDE = 128


def more(bench: Bench) -> Figures:
    """One after the other; without bars."""
    wide = bench.scale.shape(bench.scale.n, WIDE)
    halved = dataclasses.replace(wide, h=max(1, wide.h // 2))
    half = dataclasses.replace(bench, dtype=torch.float16)
    for its, shape in ((bench, halved), (half, bench.scale.shape(bench.scale.n))):
        for figure in attention_bars(its, shape, part="more"):
            yield dataclasses.replace(figure, limit=None)
    yield from _train_steps(bench)


def _train_steps(bench: Bench) -> Figures:
    """Of every scheme, not compiled, which would take a minute for each."""
    usual = bench.scale.model
    model: Model = dataclasses.replace(usual, depth=max(1, usual.depth // 6))
    for scheme in schemes():
        makers = {
            name: partial(train_step, bench.device, model, position(name), whole=False)
            for name in dict.fromkeys((scheme, "rotary"))
        }
        found = timings(bench.device, makers, bench.scale.slow)
        yield Figure(part="more", name=f"{scheme}, train step, not compiled", over="rotary",
                     shape=f"{model.depth} layers, dim {model.dim}, b={model.batch} n={model.n}",
                     n=model.n, dtype="bfloat16 autocast", mine=found[scheme],
                     other=found["rotary"])  # fmt: skip
