"""What runs: attention under a scheme, plain attention, and one-layer models, theirs and ours."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Work, peak_memory
from xcope.config.compose import LIBRARY, compose
from xcope.config.errors import ConfigError
from xcope.modules import Decoder, TransformerWrapper
from xcope.modules.attention import LayerCall, Part, attend_groups, own_sinks, read_by
from xcope.modules.decoder import Builder
from xcope.modules.places import Places
from xcope.modules.seam import UpstreamDecoder, UpstreamTransformerWrapper
from xcope.positions import Geometry, Plan, Position, Slot, parse, schemes

HEADS, DIM_HEAD = 8, 64
DIM = HEADS * DIM_HEAD


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        n: tokens.
        repeats: of each measurement; fewer, ``slow``, of what takes seconds.
    """

    n: int = 4096
    repeats: int = 7
    slow: int = 3


WARM = 600
"""Tokens with which all code is run once, also that of longer rows, before memory is measured."""

FULL = Scale()
QUICK = Scale(n=128, repeats=1, slow=1)


def position(name: str) -> Position:
    """The scheme with its options, as configs/schemes/<name>.yaml has it.

    Raises:
        ConfigError: no such file, or one that says nothing of it.
    """
    tree = compose(LIBRARY / "schemes" / f"{name}.yaml")
    node = tree.get("model", "position")
    if node is None:
        raise ConfigError("expected a scheme with its options", "model.position", tree.mark)
    chosen: Position = node.plain()
    return chosen


def tensors(n: int) -> list[Tensor]:
    """q, k and v, (1 h n d)."""
    return [torch.randn(1, HEADS, n, DIM_HEAD).requires_grad_() for _ in range(3)]


class Plain:
    """Causal attention without positions; a call is a forward and a backward.

    Args:
        n: tokens.
    """

    def __init__(self, n: int) -> None:
        torch.manual_seed(0)
        self.qkv = tensors(n)

    def __call__(self) -> None:
        """Compute the gradients."""
        self.gradients()

    def gradients(self) -> list[Tensor]:
        """The gradients of q, k and v."""
        q, k, v = self.qkv
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return _gradients(out, self.qkv)


class Layer:
    """What a scheme does for one layer; a call is a forward and a backward.

    From q, k and v (1 h n d) to attention's output, with all that the scheme computes from its
    parameters. Embeddings x (1 n dim) come in where the scheme reads them: forgetting and
    contextual rotary project them, a scheme of the input slot is added to them; so do gates' keys
    of their own.

    Args:
        name: of a registered scheme.
        n: tokens.

    Attributes:
        given: the tensors that attention gets gradients for: the above and all its parameters.
        given_before: the same of what is added to the embeddings.
    """

    def __init__(self, name: str, n: int) -> None:
        torch.manual_seed(0)
        self.n = n
        plan = parse(position(name))
        self.parts, self.added = _built(plan, n)
        self.qkv = tensors(n)
        attends = [part.attend for part in self.parts if part.attend is not None]
        remembers = any(module is not None for module in read_by(self.parts))
        self.x = [torch.randn(1, n, DIM).requires_grad_()] if remembers or self.added else []
        own = any(attend.gate_keys == "own" for attend in attends)
        self.gate_k = [torch.randn_like(self.qkv[1]).requires_grad_()] if own else []
        attention = nn.ModuleList(_modules(self.parts))
        x = self.x if remembers else []
        self.given = [*self.qkv, *x, *self.gate_k, *attention.parameters()]
        added = nn.ModuleList(self.added)
        self.given_before = [*(self.x if self.added else []), *added.parameters()]

    def __call__(self) -> None:
        """Compute every gradient."""
        deque(self.gradients(), maxlen=0)

    def gradients(self) -> Iterator[list[Tensor]]:
        """The gradients of ``given``, then those of ``given_before``: the order of a train step."""
        tokens = torch.zeros(1, self.n, dtype=torch.int64)
        embedded = [self.x[0] + module(tokens) for module in self.added]
        yield _gradients(self._attention(), self.given)
        for x in embedded:
            yield _gradients(x, self.given_before)

    def _attention(self) -> Tensor:
        modules = read_by(self.parts)
        left = [None if module is None else module.remember(*self.x) for module in modules]
        placing, remembered = left[: len(self.parts)], left[len(self.parts) :]
        call = LayerCall(
            Places(torch.arange(self.n)), placing=tuple(placing), remembered=tuple(remembered)
        )
        q, k, v = self.qkv
        gates = {
            None: None,
            "keys": None,
            "values": v,
            "own": self.gate_k[0] if self.gate_k else None,
        }
        scale = DIM_HEAD**-0.5
        sinks = own_sinks(self.parts, q.device)
        return attend_groups(
            self.parts, call, q, k, v, gates, mask=None, sinks=sinks, scale=scale, causal=True
        )


def _gradients(out: Tensor, given: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(out, given, torch.ones_like(out)))


def _built(plan: Plan, n: int) -> tuple[list[Part], list[nn.Module]]:
    """What each group of a layer's heads has, and what is added to the input."""
    geometry = Geometry(dim=DIM, heads=HEADS, dim_head=DIM_HEAD)
    wrapper = dataclasses.replace(geometry, max_seq_len=n)
    added = [one.build(wrapper) for one in plan.of(Slot.INPUT)]
    parts = Builder(geometry).parts(plan.layers[0])
    return parts, [module for module in added if module is not None]


def _modules(parts: list[Part]) -> Iterator[nn.Module]:
    for part in parts:
        for module in (part.rotation, part.bias, part.attend, part.sink, part.scale):
            if module is not None:
                yield module


def _plain(n: int) -> None:
    Plain(n)()


def _layer(name: str, n: int) -> None:
    Layer(name, n)()


def memory(name: str | None, n: int, threads: int) -> int:
    """Peak bytes of a forward and backward, inputs, parameters and gradients included.

    Args:
        name: of a scheme; None: plain attention.
        n: tokens.
        threads: of torch.
    """
    work: partial[None] = partial(_plain) if name is None else partial(_layer, name)
    return peak_memory(partial(work, min(n, WARM)), partial(work, n), threads)


# -- models ------------------------------------------------------------------------------------

TOKENS = 16
"""Few kinds."""
LAYER: dict[str, Any] = {
    "dim": DIM,
    "depth": 1,
    "heads": HEADS,
    "attn_dim_head": DIM_HEAD,
    "custom_layers": ("a",),
    "verbose": False,
}
"""One of attention, no feed-forward."""


@dataclass(frozen=True)
class Rivals:
    """The same model of x-transformers and of ours, with the same parameters.

    Args:
        flash: whether x-transformers computes it by flash attention; where it refuses, it holds
            (h n n) logits.
    """

    theirs: nn.Module
    ours: nn.Module
    flash: bool

    @property
    def how(self) -> str:
        """How x-transformers computes attention, in a word."""
        return "flash" if self.flash else "n×n"

    def works(self, n: int) -> tuple[Work, Work]:
        """Forward and backward of theirs and of ours, at n tokens."""
        x = torch.randint(TOKENS, (1, n))
        return partial(_train, self.theirs, x), partial(_train, self.ours, x)


def rivals(
    name: str,
    n: int,
    tokens: int = TOKENS,
    layers: Mapping[str, Any] = LAYER,
    max_pos: int | None = None,
) -> Rivals | None:
    """Models under a scheme for up to n tokens; None where x-transformers has no such scheme.

    Args:
        name: of the scheme.
        n: tokens of a row.
        tokens: how many kinds there are.
        layers: keywords of both decoders.
        max_pos: of CoPE's table, where a scheme has one; None: the default.
    """
    counterpart = schemes()[name].counterpart()
    if counterpart is None:
        return None
    switches, wrapper = counterpart
    size: dict[str, Any] = {"num_tokens": tokens, "max_seq_len": n}
    longer = max_pos is not None and "attn_use_cope" in switches
    flags: dict[str, Any] = {"attn_cope_max_pos": max_pos} if longer else {}
    torch.manual_seed(0)
    flash = True
    try:
        decoder = UpstreamDecoder(**layers, **switches, **flags, attn_flash=True)
    except AssertionError:  # its refusal
        flash = False
        decoder = UpstreamDecoder(**layers, **switches, **flags)
    theirs = UpstreamTransformerWrapper(**size, **wrapper, attn_layers=decoder)
    ours = TransformerWrapper(**size, attn_layers=Decoder(**layers, position=name, **flags))
    ours.load_state_dict(theirs.state_dict())
    return Rivals(theirs, ours, flash)


def _train(model: nn.Module, x: Tensor) -> None:
    logits = model(x)
    torch.autograd.grad(logits, list(model.parameters()), torch.ones_like(logits))
