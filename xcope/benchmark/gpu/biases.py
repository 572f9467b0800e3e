"""What index biases cost over flash attention without positions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from xcope.benchmark.cope.workloads import forward_backward
from xcope.benchmark.gpu.bars import FLASH
from xcope.benchmark.gpu.bias_cases import index_bias
from xcope.benchmark.gpu.compare import Case
from xcope.benchmark.gpu.figures import Figure, Figures, dtype_name
from xcope.benchmark.gpu.measure import timings
from xcope.benchmark.gpu.warm import Warm
from xcope.benchmark.gpu.workloads import Bench, Shape, flash
from xcope.benchmark.measure import Work
from xcope.ops.biased import biased_attention
from xcope.positions import IndexBias

SCHEMES = ("alibi", "t5", "kerple", "fire")


def biases(bench: Bench) -> Figures:
    """Forward and backward, from q, k, v to the gradients of these and of the parameters."""
    shape = bench.scale.shape(bench.scale.n)
    for scheme in SCHEMES:
        makers = {
            FLASH: partial(_plain, bench, shape),
            scheme: partial(_biased, bench, shape, scheme),
        }
        found = timings(bench.device, makers, bench.scale.slow)
        yield Figure(part="biases", name=f"{scheme}, fwd+bwd", over=FLASH, shape=str(shape),
                     n=shape.n, dtype=dtype_name(bench), mine=found[scheme],
                     other=found[FLASH])  # fmt: skip


def slow_to_compile(bench: Bench) -> list[Case]:
    """To be done before `biases`, side by side."""
    shape = bench.scale.shape(bench.scale.n)
    return [Warm(f"bias, {name}", partial(_biased, bench, shape, name)) for name in SCHEMES]


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
