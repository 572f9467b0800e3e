"""Time and memory of attention against the length, as many tokens at each."""

from __future__ import annotations

from functools import partial

from xcope.benchmark.cope.workloads import ours
from xcope.benchmark.gpu.bars import FLASH
from xcope.benchmark.gpu.figures import Figure, Figures, attention_works, dtype_name
from xcope.benchmark.gpu.workloads import Bench, flash

CONTENDERS = (FLASH, "CoPE, gates about 0.5", "CoPE, gates near 0", "CoPE, x-transformers")


def curve(bench: Bench) -> Figures:
    """Every contender at every length; x-transformers' up to the first where it does not fit."""
    _, half, few, theirs = CONTENDERS
    fits = True
    for n in bench.scale.lengths:
        shape = bench.scale.shape(n)
        repeats = bench.scale.slow
        contenders = {FLASH: flash, half: ours} | ({theirs: bench.upstream} if fits else {})
        usual = partial(bench.tensors, shape)
        found = attention_works(bench, contenders, usual, repeats=repeats)
        unsaturated = partial(bench.tensors, shape, few_gates=True)
        found |= attention_works(bench, {few: ours}, unsaturated, repeats=repeats)
        for name in (name for name in CONTENDERS if name in found):
            yield Figure(part="curve", name=name, over=FLASH, shape=str(shape), n=n,
                         dtype=dtype_name(bench), mine=found[name], other=found[FLASH])  # fmt: skip
        fits = theirs in found and not found[theirs].error
