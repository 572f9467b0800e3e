"""What is run: one layer's attention under a scheme, forward and backward, and plain attention."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.benchmark.measure import peak_memory
from xcope.config.compose import LIBRARY, compose
from xcope.config.errors import ConfigError
from xcope.modules.attention import LayerCall, Part, attend_groups
from xcope.modules.decoder import Builder
from xcope.modules.places import Places
from xcope.positions import Geometry, Plan, Position, Slot, parse

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


FULL = Scale()
QUICK = Scale(n=128, repeats=1, slow=1)


def position(name: str) -> Position:
    """What ``model.position`` is in configs/schemes/<name>.yaml.

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
        """The gradients, which are not kept."""
        self.gradients()

    def gradients(self) -> list[Tensor]:
        """Those of q, k and v."""
        q, k, v = self.qkv
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return _gradients(out, self.qkv)


class Layer:
    """What a scheme does for one layer; a call is a forward and a backward.

    From q, k and v (1 h n d) to attention's output, with all that the scheme computes from its
    parameters. Embeddings x (1 n dim) come in where the scheme reads them: forgetting projects
    them, a scheme of the input slot is added to them.

    Args:
        name: of a registered scheme.
        n: tokens.

    Attributes:
        given: what attention's gradients are computed for: the above and all parameters.
        given_before: the same of what is added to the embeddings.
    """

    def __init__(self, name: str, n: int) -> None:
        torch.manual_seed(0)
        self.n = n
        plan = parse(position(name))
        self.parts, self.added = _built(plan, n)
        self.qkv = tensors(n)
        forgets = any(part.attend is not None and part.attend.remembers for part in self.parts)
        self.x = [torch.randn(1, n, DIM).requires_grad_()] if forgets or self.added else []
        attention = nn.ModuleList(_modules(self.parts))
        self.given = [*self.qkv, *(self.x if forgets else []), *attention.parameters()]
        added = nn.ModuleList(self.added)
        self.given_before = [*(self.x if self.added else []), *added.parameters()]

    def __call__(self) -> None:
        """Every gradient, none of which is kept."""
        deque(self.gradients(), maxlen=0)

    def gradients(self) -> Iterator[list[Tensor]]:
        """Those of ``given``, then those of ``given_before``: the order of a train step."""
        tokens = torch.zeros(1, self.n, dtype=torch.int64)
        embedded = [self.x[0] + module(tokens) for module in self.added]
        yield _gradients(self._attention(), self.given)
        for x in embedded:
            yield _gradients(x, self.given_before)

    def _attention(self) -> Tensor:
        remembered = [
            part.attend.remember(*self.x)
            if part.attend is not None and part.attend.remembers
            else None
            for part in self.parts
        ]
        call = LayerCall(Places(torch.arange(self.n)), remembered=tuple(remembered))
        q, k, v = self.qkv
        scale = DIM_HEAD**-0.5
        return attend_groups(
            self.parts, call, q, k, v, {None: None}, mask=None, scale=scale, causal=True
        )


def _gradients(out: Tensor, given: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(out, given, torch.ones_like(out)))


def _built(plan: Plan, n: int) -> tuple[list[Part], list[nn.Module]]:
    """The groups of a layer's heads, and what is added to the input."""
    geometry = Geometry(dim=DIM, heads=HEADS, dim_head=DIM_HEAD)
    wrapper = dataclasses.replace(geometry, max_seq_len=n)
    added = [one.build(wrapper) for one in plan.of(Slot.INPUT)]
    parts = Builder(geometry).parts(plan.layers[0])
    return parts, [module for module in added if module is not None]


def _modules(parts: list[Part]) -> Iterator[nn.Module]:
    for part in parts:
        for module in (part.rotation, part.bias, part.attend):
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
    return peak_memory(partial(work, 64), partial(work, n), threads)
