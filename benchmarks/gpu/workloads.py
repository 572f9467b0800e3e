"""What is run on a GPU: attention, train steps, decoding steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cope.workloads import Model, decoder
from benchmarks.measure import Work
from benchmarks.schemes.workloads import position as position_of
from xcope.modules.decoder import Builder
from xcope.positions import Geometry, IndexBias, Position, parse

LARGE = Model(depth=12, dim=768, heads=12, n=4096, batch=4)


@dataclass(frozen=True)
class Shape:
    """Of q, k and v."""

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
        """At a length; 0: d of the bars."""
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
    layer = parse(position_of(scheme)).layers[0]
    (part,) = Builder(Geometry(dim=h * d, heads=h, dim_head=d)).parts(layer)
    if part.bias is None:
        raise ValueError(f"{scheme} has no index bias")
    return part.bias


# -- models --------------------------------------------------------------------------------------


def train_step(device: torch.device, model: Model, position: Position, whole: bool = True) -> Work:
    """Forward in bfloat16 under autocast, cross-entropy, backward, AdamW.

    Args:
        device: where; on CUDA the model is compiled if ``whole``.
        model: its size.
        position: its scheme.
        whole: False: as it is.
    """
    on_cuda = device.type == "cuda"
    net = decoder(model, position, model.n).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=on_cuda)
    x = torch.randint(256, (model.batch, model.n + 1), device=device)
    called = torch.compile(net) if whole and on_cuda else net
    return partial(_train_step, called, optimizer, x)


def _train_step(
    net: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor
) -> None:
    with torch.autocast(x.device.type, torch.bfloat16):
        loss = F.cross_entropy(net(x[:, :-1]).transpose(1, 2), x[:, 1:])
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def decoding_step(device: torch.device, model: Model, position: str, context: int) -> Work:
    """One token with the cache at a context, in bfloat16, not compiled."""
    net = decoder(model, position, context + 1).to(device, torch.bfloat16).eval()
    x = torch.randint(256, (1, context + 1), device=device)
    with torch.no_grad():
        _, cache = net(x[:, :-1], return_intermediates=True)
    return partial(_decoding_step, net, x, cache)


@torch.no_grad()
def _decoding_step(net: nn.Module, x: Tensor, cache: object) -> None:
    net(x, return_intermediates=True, cache=cache)
