"""What runs on a GPU beside `benchmarks.cope.workloads`, and how large everything is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cope.workloads import Model
from benchmarks.schemes.workloads import position
from xcope.modules.decoder import Builder
from xcope.positions import Geometry, IndexBias, parse

LARGE = Model(depth=12, dim=768, heads=12, n=4096, batch=4)


@dataclass(frozen=True)
class Shape:
    """The shape of q, k and v."""

    b: int
    h: int
    n: int
    d: int

    def __str__(self) -> str:
        return f"b={self.b} h={self.h} n={self.n} d={self.d}"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        tokens: b n of the curve and the bars, as long as b is at least 1.
        n: of the bars.
        n_upstream: of the bar against x-transformers.
        longest: which must fit into memory.
        lengths: of the curve.
        model: whose train step is measured and which decodes.
        contexts: at which it decodes.
        repeats: of each measurement; fewer, ``slow``, of what takes long.
    """

    tokens: int = 32768
    h: int = 16
    d: int = 64
    n: int = 8192
    n_upstream: int = 4096
    longest: int = 65536
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    model: Model = LARGE
    contexts: tuple[int, ...] = (4096, 8192)
    repeats: int = 21
    slow: int = 7

    def shape(self, n: int, d: int = 0) -> Shape:
        """The shape at a length; d, if 0, is that of the bars."""
        return Shape(max(1, self.tokens // n), self.h, n, d or self.d)


FULL = Scale()
QUICK = Scale(
    tokens=128,
    h=2,
    d=16,
    n=64,
    n_upstream=32,
    longest=128,
    lengths=(32, 64),
    model=Model(depth=1, dim=32, heads=2, n=32, batch=2),
    contexts=(32, 64),
    repeats=1,
    slow=1,
)


def flash(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Causal attention without positions, by flash attention and nothing else."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def index_bias(scheme: str, h: int, d: int) -> IndexBias:
    """The bias of h heads, d wide, as configs/schemes/<scheme>.yaml has it; on the CPU."""
    torch.manual_seed(0)
    layer = parse(position(scheme)).layers[0]
    (part,) = Builder(Geometry(dim=h * d, heads=h, dim_head=d)).parts(layer)
    if part.bias is None:
        raise ValueError(f"{scheme} has no index bias")
    return part.bias
