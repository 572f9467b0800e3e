"""What attention and models cost on a GPU: bars for CoPE, and what is measured without bars.

Every function yields its figures one after the other, as they are measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.cope.workloads import (
    MAX_POS,
    Attention,
    Model,
    decoding_step,
    forward_backward,
    ours,
    train_step,
    upstream,
)
from benchmarks.gpu.compare import Case
from benchmarks.gpu.figures import Bench, Figure, Figures, attention_works
from benchmarks.gpu.processes import Warm
from benchmarks.gpu.workloads import Shape, flash, index_bias
from benchmarks.measure import Timing, Work, timings
from benchmarks.schemes.workloads import position
from xcope.ops import fallback
from xcope.ops.biased import biased_attention
from xcope.ops.cope import CopeInputs, gpu
from xcope.positions import IndexBias, schemes

SATURATED, UNSATURATED, UPSTREAM, TRAIN, DECODING = 1.5, 3.0, 30.0, 1.2, 1.1
FLASH, COPE = "SDPA flash", "CoPE"
BOTH = ("cope", "rotary")
UPSTREAM_BATCHES = (4, 2, 1)  # the first of which x-transformers' (b h n n) tensors fit


def bars(bench: Bench) -> Figures:
    """Every bar, those that compile models last."""
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
    return bench.figure(part, f"{COPE}, {case}", FLASH, shape, found[COPE], found[FLASH],
                        limit=limit, must_run=must_run)  # fmt: skip


def _upstream(bench: Bench) -> Figure:
    """CoPE beside x-transformers', at the largest batch that fits."""
    name = "CoPE, x-transformers"
    contenders: dict[str, Attention] = {name: upstream, COPE: ours}
    for b in UPSTREAM_BATCHES:
        shape = Shape(b, bench.scale.h, bench.scale.n_upstream, bench.scale.d)
        found = attention_works(
            bench, contenders, partial(bench.tensors, shape), repeats=bench.scale.slow
        )
        if not found[name].error:
            break
    return bench.figure("bars", f"{COPE}, fwd+bwd, max_pos {MAX_POS}", name, shape, found[COPE],
                        found[name], limit=UPSTREAM, inverse=True)  # fmt: skip


def _longest(bench: Bench) -> Figure:
    shape = Shape(1, bench.scale.h, bench.scale.longest, bench.scale.d)
    case = f"fwd+bwd, max_pos {MAX_POS}, the longest row"
    return over_flash(bench, shape, case, "bars", must_run=True, repeats=bench.scale.slow)


def _decoding(bench: Bench) -> Figures:
    model = bench.scale.model
    for context in bench.scale.contexts:
        makers = {
            scheme: partial(decoding_step, model, scheme, context, bench.device, torch.bfloat16)
            for scheme in BOTH
        }
        found = timings(bench.device, makers, bench.scale.repeats)
        yield Figure(part="bars", name=f"CoPE, decoding step at context {context}", over="rotary",
                     shape=f"{model.depth} layers, dim {model.dim}, b=1", n=context,
                     dtype="bfloat16", mine=found["cope"], other=found["rotary"],
                     limit=DECODING)  # fmt: skip


def _train(bench: Bench) -> Figure:
    model = bench.scale.model
    makers = {scheme: _compiled_step(bench, scheme) for scheme in BOTH}
    found = timings(bench.device, makers, bench.scale.repeats)
    figure = _of_train_steps("bars", "CoPE, train step", model, found["cope"], found["rotary"])
    return dataclasses.replace(figure, limit=TRAIN)


def _compiled_step(bench: Bench, scheme: str) -> Callable[[], Work]:
    on_cuda = bench.device.type == "cuda"
    return partial(
        train_step, bench.scale.model, scheme, bench.device, torch.bfloat16, compiled=on_cuda
    )


def _of_train_steps(part: str, name: str, model: Model, mine: Timing, other: Timing) -> Figure:
    shape = f"{model.depth} layers, dim {model.dim}, b={model.batch} n={model.n}"
    return Figure(part=part, name=name, over="rotary", shape=shape, n=model.n,
                  dtype="bfloat16 autocast", mine=mine, other=other)  # fmt: skip


# -- index biases ---------------------------------------------------------------------------------


BIASES = ("alibi", "t5", "kerple", "fire")


def biases(bench: Bench) -> Figures:
    """Attention with an index bias, forward and backward, gradients to its parameters included."""
    shape = bench.scale.shape(bench.scale.n)
    for scheme in BIASES:
        makers = {
            FLASH: partial(_plain, bench, shape),
            scheme: partial(_biased, bench, shape, scheme),
        }
        found = timings(bench.device, makers, bench.scale.slow)
        name = f"{scheme}, fwd+bwd"
        yield bench.figure("biases", name, FLASH, shape, found[scheme], found[FLASH])


def _plain(bench: Bench, shape: Shape) -> Work:
    return partial(forward_backward, flash, bench.tensors(shape))


def _biased(bench: Bench, shape: Shape, scheme: str) -> Work:
    bias = index_bias(scheme, shape.h, shape.d).to(bench.device)
    return partial(_forward_backward, bias, bench.tensors(shape)[:3])


def _forward_backward(bias: IndexBias, qkv: list[Tensor]) -> None:
    q, k, v = qkv
    n = q.shape[2]
    places = torch.arange(n, device=q.device)
    out = biased_attention(q, k, v, bias.terms(places, places, n))
    torch.autograd.grad(out, [*qkv, *bias.parameters()], torch.ones_like(out))


# -- against the length ---------------------------------------------------------------------------


CONTENDERS = (FLASH, "CoPE, gates about 0.5", "CoPE, gates near 0", "CoPE, x-transformers")


def curve(bench: Bench) -> Figures:
    """Every contender at every length; x-transformers' CoPE up to the first that does not fit."""
    _, half, few, theirs = CONTENDERS
    fits = True
    for n in bench.scale.lengths:
        shape = bench.scale.shape(n)
        repeats = bench.scale.slow
        contenders = {FLASH: flash, half: ours} | ({theirs: upstream} if fits else {})
        usual = partial(bench.tensors, shape)
        found = attention_works(bench, contenders, usual, repeats=repeats)
        unsaturated = partial(bench.tensors, shape, few_gates=True)
        found |= attention_works(bench, {few: ours}, unsaturated, repeats=repeats)
        for name in (name for name in CONTENDERS if name in found):
            yield bench.figure("curve", name, FLASH, shape, found[name], found[FLASH])
        fits = theirs in found and not found[theirs].error


# -- kernels --------------------------------------------------------------------------------------


FORWARD = f"{FLASH}, forward"


def kernels(bench: Bench) -> Figures:
    """Every Triton kernel of CoPE by itself, in each of its tiles, beside flash attention."""
    if not fallback.INSTALLED or (bench.device.type != "cuda" and not gpu.interpreted()):
        return
    shape = bench.scale.shape(bench.scale.n)
    for case, max_pos, few_gates in (
        ("saturated at once", 1, False),
        (f"max_pos {MAX_POS}", MAX_POS, False),
        ("gates near 0", MAX_POS, True),
    ):
        given = [t.detach() for t in bench.tensors(shape, max_pos, few_gates)]
        makers: dict[str, Callable[[], Work]] = {FORWARD: partial(partial, flash, *given)}
        found = timings(bench.device, makers | _kernels(given), bench.scale.slow)
        for name, mine in found.items():
            if name != FORWARD:
                yield bench.figure(
                    "kernels", f"{name}, {case}", FORWARD, shape, mine, found[FORWARD]
                )


def _kernels(given: list[Tensor]) -> dict[str, Callable[[], Work]]:
    """Kernel and tiles → what gives its launch, with all that comes before it done."""
    from xcope.ops.cope.gpu import launch as triton  # noqa: PLC0415, Triton may be missing
    from xcope.ops.cope.gpu import tuning  # noqa: PLC0415, Triton may be missing

    q, k, v, table = given
    inputs = CopeInputs(q=q, k=k, v=v, pos_emb=table, scale=q.shape[-1] ** -0.5)
    launch = tuning.launch
    launches: dict[str, Any] = {}

    def watched(name: str, tiles: Any, grid: Any, arguments: dict[str, Any]) -> None:
        launches[name] = (tiles, grid, arguments)
        launch(name, tiles, grid, arguments)

    with mock.patch.object(triton, "launch", watched):
        saved = triton.forward(inputs)
        triton.backward(torch.ones_like(saved.out), saved, inputs)
    return {
        f"{name}, {one}": partial(partial, launch, name, (one,), *rest)
        for name, (tiles, *rest) in launches.items()
        for one in tiles
    }


# -- what --full adds -----------------------------------------------------------------------------


WIDE = 128


def more(bench: Bench) -> Figures:
    """The bars at other head sizes and in float16, without limits; a train step of every scheme."""
    wide = bench.scale.shape(bench.scale.n, WIDE)
    halved = dataclasses.replace(wide, h=max(1, wide.h // 2))
    half = dataclasses.replace(bench, dtype=torch.float16)
    for its, shape in ((bench, halved), (half, bench.scale.shape(bench.scale.n))):
        for figure in attention_bars(its, shape, part="more"):
            yield dataclasses.replace(figure, limit=None)
    yield from _train_steps(bench)


def _train_steps(bench: Bench) -> Figures:
    """Every scheme's, not compiled: that would take a minute for each."""
    usual = bench.scale.model
    model = dataclasses.replace(usual, depth=max(1, usual.depth // 6))
    for scheme in schemes():
        makers = {
            name: partial(train_step, model, position(name), bench.device, torch.bfloat16)
            for name in dict.fromkeys((scheme, "rotary"))
        }
        found = timings(bench.device, makers, bench.scale.slow)
        name = f"{scheme}, train step, not compiled"
        yield _of_train_steps("more", name, model, found[scheme], found["rotary"])


# -- compiled beforehand -------------------------------------------------------------------------


def slow_to_compile(part: str, bench: Bench) -> list[Case]:
    """Cases that compile what a part measures, so that it can be done side by side."""
    shape = bench.scale.shape(bench.scale.n)
    makers: dict[str, Callable[[], Work]] = {}
    if part == "bars":
        for name in BOTH:
            makers[f"train step, {name}"] = _compiled_step(bench, name)
    elif part == "biases":
        for name in BIASES:
            makers[f"bias, {name}"] = partial(_biased, bench, shape, name)
    return [Warm(name, make) for name, make in makers.items()]
