"""What is run: attention forward and backward, train steps, decoding steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from x_transformers.attend import Attend
from x_transformers.x_transformers import CoPE as UpstreamCoPE

from benchmarks.measure import Work, peak_memory
from xcope.modules import Decoder, TransformerWrapper
from xcope.ops.cope import cope_attention
from xcope.ops.cope.cpu import walk
from xcope.positions import Position

HEADS, DIM = 8, 64
MAX_POS = 64

Attention = Callable[..., Tensor]
"""(q, k, v, table), each (1 h n d) but for the table (p d) → (1 h n d), causal."""


@dataclass(frozen=True)
class Model:
    """Size of a decoder and of its batches."""

    depth: int
    dim: int
    heads: int
    n: int
    batch: int


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        n: length of the bars.
        repeats: of each measurement; fewer, ``slow``, of what takes seconds.
        lengths: of the curves.
        longest_upstream: x-transformers' CoPE is measured up to here, where it takes 8 GiB.
        max_positions: of the measurement of saturated tiles.
        large, small: the models of the train steps; ``large`` decodes, too.
    """

    n: int = 4096
    repeats: int = 9
    slow: int = 5
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    longest_upstream: int = 4096
    max_positions: tuple[int, ...] = (16, 64, 256, 1024, 2048, 4096)
    large: Model = Model(depth=6, dim=256, heads=8, n=1024, batch=2)
    small: Model = Model(depth=2, dim=64, heads=4, n=256, batch=16)


FULL = Scale()
QUICK = Scale(
    n=256,
    repeats=1,
    slow=1,
    lengths=(128, 256),
    longest_upstream=128,
    max_positions=(4, 64),
    large=Model(depth=2, dim=32, heads=2, n=128, batch=1),
    small=Model(depth=1, dim=32, heads=2, n=64, batch=2),
)

# -- attention -----------------------------------------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Causal attention without positions."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def ours(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """`cope_attention` as decoders call it."""
    return cope_attention(q, k, v, table)


def upstream(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """x-transformers' CoPE attention, which holds (b h n n) tensors."""
    module = UpstreamCoPE(q.shape[-1], q.shape[1], len(table))
    del module.pos_emb
    module.pos_emb = table  # not as a parameter, so that it gets its gradient
    out, _ = Attend(causal=True, heads=q.shape[1], cope=module)(q, k, v)
    return out  # type: ignore[no-any-return]


def soft_onehot(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """CoPE with soft one-hot positions instead of interpolated ones."""
    return cope_attention(q, k, v, table, soft_onehot=True)


def tensors(n: int, max_pos: int = MAX_POS, few_gates: bool = False) -> list[Tensor]:
    """q, k, v and the table; gates about 0.5, or ``few_gates``: near 0, which never saturates."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, DIM) for _ in range(3))
    if few_gates:
        q, k = 1 + 0.2 * q, -1 + 0.2 * k
    table = 0.1 * torch.randn(max_pos, DIM)
    return [t.requires_grad_() for t in (q, k, v, table)]


def forward(attention: Attention, given: list[Tensor]) -> None:
    with torch.no_grad():
        attention(*given)


def forward_backward(attention: Attention, given: list[Tensor]) -> None:
    out = attention(*given)
    torch.autograd.grad(out, given, torch.ones_like(out), allow_unused=True)


@contextmanager
def without_numba() -> Iterator[None]:
    """Within, tiles are computed by torch operations only."""
    with mock.patch.object(walk, "compiled_body", return_value=None):
        yield


def forward_backward_in_torch(attention: Attention, given: list[Tensor]) -> None:
    with without_numba():
        forward_backward(attention, given)


def once(attention: Attention, n: int, max_pos: int = MAX_POS) -> None:
    """Forward and backward with inputs of its own, for a process of its own."""
    forward_backward(attention, tensors(n, max_pos))


def memory(attention: Attention, n: int, threads: int, max_pos: int = MAX_POS) -> int:
    """Peak bytes of a forward and backward, inputs and gradients included."""
    warm, work = (partial(once, attention, length, max_pos) for length in (64, n))
    return peak_memory(warm, work, threads)


# -- models --------------------------------------------------------------------------------------


def decoder(model: Model, position: Position, max_seq_len: int) -> TransformerWrapper:
    """With rotary positions it has flash attention; a CoPE decoder has ours."""
    torch.manual_seed(0)
    flags: dict[str, Any] = {"cope_max_pos": MAX_POS} if position == "cope" else {}
    layers = Decoder(
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        attn_dim_head=model.dim // model.heads,
        attn_flash=position != "cope",
        position=position,
        **flags,
    )
    return TransformerWrapper(num_tokens=256, max_seq_len=max_seq_len, attn_layers=layers)


def train_steps(model: Model) -> dict[str, Work]:
    """A train step with CoPE and one with rotary positions."""
    x = torch.randint(256, (model.batch, model.n + 1))
    works: dict[str, Work] = {}
    for position in ("cope", "rotary"):
        net = decoder(model, position, model.n)
        works[position] = partial(_train_step, net, torch.optim.AdamW(net.parameters()), x)
    return works


def _train_step(net: TransformerWrapper, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    logits = net(x[:, :-1]).transpose(1, 2)
    torch.autograd.backward(F.cross_entropy(logits, x[:, 1:]))
    optimizer.step()
    optimizer.zero_grad()


def decoding_steps(model: Model, context: int) -> dict[str, Work]:
    """One step with the cache at a context, with CoPE and with rotary positions."""
    x = torch.randint(256, (1, context + 1))
    works: dict[str, Work] = {}
    for position in ("cope", "rotary"):
        net = decoder(model, position, context + 1).eval()
        with torch.no_grad():
            _, cache = net(x[:, :-1], return_intermediates=True)
        works[position] = partial(_decoding_step, net, x, cache)
    return works


@torch.no_grad()
def _decoding_step(net: TransformerWrapper, x: Tensor, cache: object) -> None:
    """The logits of x's last token, all before it in the cache."""
    net(x, return_intermediates=True, cache=cache)
