"""What runs: attention forward and backward, train steps, decoding steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from x_transformers.attend import Attend
from x_transformers.x_transformers import CoPE as UpstreamCoPE

from benchmarks.measure import CPU, Work, peak_memory
from xcope.modules import Decoder, TransformerWrapper
from xcope.ops.cope import cope_attention
from xcope.ops.cope.cpu import walk
from xcope.positions import Position

HEADS, DIM = 8, 64
MAX_POS = 64

Attention = Callable[..., Tensor]
"""q, k, v (1 h n d) and the table (p d) → causal attention (1 h n d)."""


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
        n: tokens of a row, for the bars.
        repeats: of each measurement; fewer, ``slow``, of what takes seconds.
        lengths: tokens of a row, for time and memory against the length.
        longest_upstream: x-transformers' CoPE is measured up to here, where it takes 8 GiB.
        max_positions: lengths of the table, for the share of saturated tiles.
        large, small: the models that train; ``large`` decodes, too.
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


def tensors(
    n: int,
    max_pos: int = MAX_POS,
    few_gates: bool = False,
    *,
    b: int = 1,
    h: int = HEADS,
    d: int = DIM,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Random q, k, v (b h n d) and the table (max_pos d), always the same.

    Gates are about 0.5; with ``few_gates`` they are near 0, and the count never saturates.
    """
    torch.manual_seed(0)
    q, k, v = (torch.randn(b, h, n, d, device=device) for _ in range(3))
    if few_gates:
        q, k = 1 + 0.2 * q, -1 + 0.2 * k
    table = 0.1 * torch.randn(max_pos, d, device=device)
    return [t.to(dtype).requires_grad_() for t in (q, k, v, table)]


def forward(attention: Attention, given: list[Tensor]) -> None:
    """Attention without gradients."""
    with torch.no_grad():
        attention(*given)


def forward_backward(attention: Attention, given: list[Tensor]) -> None:
    """Attention, and the gradients of all its inputs."""
    out = attention(*given)
    torch.autograd.grad(out, given, torch.ones_like(out), allow_unused=True)


def forward_backward_in_torch(attention: Attention, given: list[Tensor]) -> None:
    """`forward_backward` as it is where numba is missing: tiles by torch operations."""
    with mock.patch.object(walk, "call_for", return_value=None):
        forward_backward(attention, given)


def memory(attention: Attention, n: int, threads: int, max_pos: int = MAX_POS) -> int:
    """Peak bytes of a forward and backward, inputs and gradients included."""
    warm, work = (partial(_once, attention, length, max_pos) for length in (64, n))
    return peak_memory(warm, work, threads)


def _once(attention: Attention, n: int, max_pos: int) -> None:
    forward_backward(attention, tensors(n, max_pos))


# -- models --------------------------------------------------------------------------------------


def decoder(model: Model, position: Position, max_seq_len: int) -> TransformerWrapper:
    """A decoder, always the same; x-transformers' flash attention serves all schemes but CoPE."""
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


def train_step(
    model: Model,
    position: Position,
    device: torch.device = CPU,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Work:
    """Forward, cross-entropy, backward, AdamW.

    Args:
        model: its size.
        position: its scheme.
        device: where it is.
        dtype: of autocast; None: float32.
        compiled: by `torch.compile`, as one.
    """
    net = decoder(model, position, model.n).to(device)
    x = torch.randint(256, (model.batch, model.n + 1), device=device)
    return training(net, x, dtype, compiled)


def training(
    net: nn.Module, x: Tensor, dtype: torch.dtype | None = None, compiled: bool = False
) -> Work:
    """A train step of any model on the same tokens (b n + 1); the others as of `train_step`."""
    optimizer = torch.optim.AdamW(net.parameters(), fused=x.device.type == "cuda")
    return partial(_train_step, torch.compile(net) if compiled else net, optimizer, x, dtype)


def _train_step(
    net: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    dtype: torch.dtype | None,
) -> None:
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        loss = F.cross_entropy(net(x[:, :-1]).transpose(1, 2), x[:, 1:])
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def decoding_step(
    model: Model,
    position: Position,
    context: int,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Work:
    """The logits of one token, so many before it in the cache; arguments as of `train_step`."""
    net = decoder(model, position, context + 1).to(device, dtype).eval()
    x = torch.randint(256, (1, context + 1), device=device)
    with torch.no_grad():
        _, cache = net(x[:, :-1], return_intermediates=True)
    return partial(_decoding_step, net, x, cache)


@torch.no_grad()
def _decoding_step(net: nn.Module, x: Tensor, cache: object) -> None:
    net(x, return_intermediates=True, cache=cache)
