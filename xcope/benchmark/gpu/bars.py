"""The bars: what CoPE must not cost more than so many times on a GPU."""

from __future__ import annotations

from functools import partial

from xcope.benchmark.cope.workloads import MAX_POS, Attention, ours
from xcope.benchmark.gpu.compare import Case
from xcope.benchmark.gpu.figures import Figure, Figures, attention_works, dtype_name
from xcope.benchmark.gpu.measure import timings
from xcope.benchmark.gpu.warm import Warm
from xcope.benchmark.gpu.workloads import Bench, Shape, decoding_step, flash, train_step
from xcope.benchmark.measure import Work

SATURATED, UNSATURATED, UPSTREAM, TRAIN, DECODING = 1.5, 3.0, 30.0, 1.2, 1.1
FLASH, COPE = "SDPA flash", "CoPE"
UPSTREAM_BATCHES = (4, 2, 1)  # the first of which x-transformers' (b h n n) tensors fit


def bars(bench: Bench) -> Figures:
    """Every bar, one after the other, those that compile models last."""
    yield from attention_bars(bench, bench.scale.shape(bench.scale.n))
    yield _upstream(bench)
    yield _longest(bench)
    yield from _decoding(bench)
    yield _train(bench)


def attention_bars(bench: Bench, shape: Shape, part: str = "bars") -> Figures:
    """CoPE over flash attention."""
    large = shape.n // 2 or 1
    yield over_flash(bench, shape, f"fwd+bwd, max_pos {MAX_POS}", part, limit=SATURATED)
    yield over_flash(bench, shape, f"fwd+bwd, max_pos {MAX_POS}, gates near 0", part,
                     limit=UNSATURATED, few_gates=True)  # fmt: skip
    yield over_flash(bench, shape, f"fwd+bwd, max_pos {large}", part, max_pos=large)
    yield over_flash(bench, shape, f"fwd, max_pos {MAX_POS}", part, backward=False)


def over_flash(
    bench: Bench,
    shape: Shape,
    case: str,
    part: str,
    *,
    max_pos: int = MAX_POS,
    few_gates: bool = False,
    backward: bool = True,
    limit: float | None = None,
    must_run: bool = False,
    repeats: int = 0,
) -> Figure:
    """CoPE beside flash attention on the same tensors."""
    contenders: dict[str, Attention] = {FLASH: flash, COPE: ours}
    given = partial(bench.tensors, shape, max_pos, few_gates)
    found = attention_works(bench, contenders, given, backward, repeats)
    return Figure(part=part, name=f"{COPE}, {case}", over=FLASH, shape=str(shape), n=shape.n,
                  dtype=dtype_name(bench), mine=found[COPE], other=found[FLASH], limit=limit,
                  must_run=must_run)  # fmt: skip


def _upstream(bench: Bench) -> Figure:
    """At the largest batch that fits."""
    name = "CoPE, x-transformers"
    contenders: dict[str, Attention] = {name: bench.upstream, COPE: ours}
    for b in UPSTREAM_BATCHES:
        shape = Shape(b, bench.scale.h, bench.scale.n_upstream, bench.scale.d)
        found = attention_works(
            bench, contenders, partial(bench.tensors, shape), repeats=bench.scale.slow
        )
        if not found[name].error:
            break
    return Figure(part="bars", name=f"{COPE}, fwd+bwd, max_pos {MAX_POS}", over=name,
                  shape=str(shape), n=shape.n, dtype=dtype_name(bench), mine=found[COPE],
                  other=found[name], limit=UPSTREAM, inverse=True)  # fmt: skip


def _longest(bench: Bench) -> Figure:
    shape = Shape(1, bench.scale.h, bench.scale.longest, bench.scale.d)
    case = f"fwd+bwd, max_pos {MAX_POS}, the longest row"
    return over_flash(bench, shape, case, "bars", must_run=True, repeats=bench.scale.slow)


def _decoding(bench: Bench) -> Figures:
    model = bench.scale.model
    for context in bench.scale.contexts:
        makers = {
            position: partial(decoding_step, bench.device, model, position, context)
            for position in ("cope", "rotary")
        }
        found = timings(bench.device, makers, bench.scale.repeats)
        yield Figure(part="bars", name=f"CoPE, decoding step at context {context}", over="rotary",
                     shape=f"{model.depth} layers, dim {model.dim}, b=1", n=context,
                     dtype="bfloat16", mine=found["cope"], other=found["rotary"],
                     limit=DECODING)  # fmt: skip


def _train_steps(bench: Bench) -> dict[str, partial[Work]]:
    """Makers of what is compiled."""
    model = bench.scale.model
    positions = ("cope", "rotary")
    return {name: partial(train_step, bench.device, model, name) for name in positions}


def slow_to_compile(bench: Bench) -> list[Case]:
    """To be done before `bars`, side by side."""
    return [Warm(f"train step, {name}", make) for name, make in _train_steps(bench).items()]


def _train(bench: Bench) -> Figure:
    model = bench.scale.model
    found = timings(bench.device, _train_steps(bench), bench.scale.repeats)
    return Figure(part="bars", name="CoPE, train step", over="rotary", n=model.n, limit=TRAIN,
                  shape=f"{model.depth} layers, dim {model.dim}, b={model.batch} n={model.n}",
                  dtype="bfloat16 autocast", mine=found["cope"],
                  other=found["rotary"])  # fmt: skip
