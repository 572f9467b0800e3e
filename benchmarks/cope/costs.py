"""What CoPE attention costs: the bars that it must keep to, and what is measured without bars.

Every function yields its figures one after the other, as they are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.cope.workloads import (
    MAX_POS,
    Attention,
    Model,
    Scale,
    decoding_step,
    forward,
    forward_backward,
    forward_backward_in_torch,
    memory,
    ours,
    sdpa,
    soft_onehot,
    tensors,
    train_step,
    upstream,
)
from benchmarks.measure import LINEAR, MEBIBYTE, Bar, medians, ratio
from xcope.ops.cope import CopeInputs, cope_attention
from xcope.ops.cope.cpu import walk


def bars(scale: Scale, threads: int) -> Iterator[Bar]:
    """Every bar."""
    yield from _attention(scale)
    yield from _memory(scale, threads)
    yield from _models(scale)
    yield from _soft_onehot(scale)


def _attention(scale: Scale) -> Iterator[Bar]:
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
        mine, rotary = (train_step(model, scheme) for scheme in ("cope", "rotary"))
        cost = ratio(mine, rotary, 2 * scale.repeats)
        yield Bar(f"{name}: over rotary", cost, limit, 1.3, parts=name)
    mine, rotary = (decoding_step(scale.large, one, scale.n) for one in ("cope", "rotary"))
    cost = ratio(mine, rotary, 3 * scale.repeats)
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


# -- against the length ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Forward and backward of one attention at one length."""

    name: str
    n: int
    seconds: float
    mebibytes: float

    def __str__(self) -> str:
        return f"n {self.n}, {self.name}: {self.seconds:.4f} s, {self.mebibytes:.1f} MiB"


def curves(scale: Scale, threads: int) -> Iterator[Point]:
    """Every contender at every length."""
    for n in scale.lengths:
        contenders: dict[str, Attention] = {"SDPA": sdpa, "CoPE, ours": ours}
        if n <= scale.longest_upstream:
            contenders["CoPE, x-transformers"] = upstream
        given = tensors(n)
        works = {name: partial(forward_backward, f, given) for name, f in contenders.items()}
        times = medians(works, scale.repeats if n < scale.n else min(scale.slow, 3))
        del given, works
        for name, attention in contenders.items():
            yield Point(name, n, times[name], memory(attention, n, threads) / MEBIBYTE)


# -- saturated tiles ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saturation:
    """How much of attention was saturated, and its cost.

    Args:
        share: of the (query, key) pairs that are in the saturated part.
        ratio: forward and backward over those of SDPA.
    """

    max_pos: int
    share: float
    ratio: float

    def __str__(self) -> str:
        return f"max_pos {self.max_pos}: {self.share:.1%} saturated, {self.ratio:.2f} × SDPA"


def saturation(scale: Scale) -> Iterator[Saturation]:
    """With tables from short to as long as the input, gates about 0.5."""
    for max_pos in scale.max_positions:
        given = tensors(scale.n, max_pos)
        mine, plain = (partial(forward_backward, f, given) for f in (ours, sdpa))
        share = saturated_share(*(t.detach() for t in given))
        yield Saturation(max_pos, share, ratio(mine, plain, scale.slow))


def saturated_share(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> float:
    """The share of the causal (query, key) pairs that the operator treated as saturated."""
    scale = q.shape[-1] ** -0.5
    start = walk.forward(CopeInputs(q=q, k=k, v=v, pos_emb=table, scale=scale)).start
    seen = torch.arange(1, q.shape[2] + 1)  # by each query
    return float(torch.minimum(start, seen).sum() / seen.expand_as(start).sum())


# -- variants -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """Forward and backward of a variant over those of what it is compared with."""

    name: str
    over: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.name}: {self.ratio:.2f} × {self.over}"


def variants(scale: Scale) -> Iterator[Variant]:
    """Every variant, with max_pos 64 unless its name says otherwise."""
    usual = tensors(scale.n)
    plain = partial(forward_backward, ours, usual)
    for name, attention, given in variants_of(usual):
        cost = ratio(partial(forward_backward, attention, given), plain, scale.slow)
        yield Variant(name, "plain CoPE", cost)
    cases = {
        "max_pos 64": usual,
        "gates near 0": tensors(scale.n, few_gates=True),
        f"max_pos {scale.n}": tensors(scale.n, max_pos=scale.n),
    }
    for case, given in cases.items():
        in_torch = partial(forward_backward_in_torch, ours, given)
        cost = ratio(in_torch, partial(forward_backward, sdpa, given), scale.slow)
        yield Variant(f"without numba, {case}", "SDPA", cost)


def variants_of(usual: list[Tensor]) -> Iterator[tuple[str, Attention, list[Tensor]]]:
    """Name, attention and its inputs of each variant of CoPE.

    Args:
        usual: q, k, v (b h n d) and the table (max_pos d) of plain CoPE.
    """
    q, k, v, table = usual
    h = q.shape[1]
    gate_k = torch.randn_like(k).requires_grad_()
    mix = (torch.eye(h) + 0.1 * torch.randn(h, h)).requires_grad_()
    tables = (0.1 * torch.randn(h, *table.shape)).requires_grad_()
    yield "gates from their own keys (cope_sep_keys)", _sep_keys, [*usual, gate_k]
    yield "gates from values (cope_val_gates)", _val_gates, usual
    yield "gates mixed across heads (cope_talking_heads)", _talking_heads, [*usual, mix]
    yield "a table for each head (cope_per_head)", ours, [q, k, v, tables]


def _sep_keys(q: Tensor, k: Tensor, v: Tensor, table: Tensor, gate_k: Tensor) -> Tensor:
    return cope_attention(q, k, v, table, gate_k=gate_k)


def _val_gates(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return cope_attention(q, k, v, table, gate_k=v)


def _talking_heads(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mix: Tensor) -> Tensor:
    return cope_attention(q, k, v, table, head_mix=mix)
