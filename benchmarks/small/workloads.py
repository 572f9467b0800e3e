"""What runs: whole train steps, attention alone, commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cope import workloads as cope
from benchmarks.measure import Work
from benchmarks.schemes.workloads import position, rivals
from benchmarks.small.plain import PlainDecoder
from xcope.modules import Decoder, TransformerWrapper
from xcope.positions import schemes

REPO = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size(cope.Model):
    """A decoder that trains, and its batches.

    Args:
        tokens: how many kinds there are.
        max_pos: of CoPE's table.
        repeats: of what needs the closest look; fewer, ``slow``, of the many other models.
    """

    tokens: int = 256
    max_pos: int = 64
    repeats: int = 1
    slow: int = 1

    def __str__(self) -> str:
        return f"{self.depth} × {self.dim}, n {self.n}, batch {self.batch}"


@dataclass(frozen=True)
class Rows:
    """Inputs of attention alone.

    Args:
        n: tokens of a row.
        b: rows.
        h: heads.
        d: channels of each.
        max_pos: of CoPE's table.
        repeats: of the measurement.
    """

    n: int
    b: int
    h: int
    d: int
    max_pos: int = 64
    repeats: int = 15

    def __str__(self) -> str:
        return f"n {self.n}"

    def tensors(self, max_pos: int | None = None, few_gates: bool = False) -> list[Tensor]:
        """q, k, v and the table, as `benchmarks.cope.workloads.tensors` has them."""
        shape: dict[str, Any] = {"b": self.b, "h": self.h, "d": self.d}
        return cope.tensors(self.n, max_pos or self.max_pos, few_gates, **shape)


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        sizes: of the models that train; the first is the quickstart's.
        rows: of attention; the first has the quickstart's heads, the last is the longest.
        profiles: bars that are profiled at most, of those that are missed.
        calls: repeats of each command.
        again: overrides of the quickstart for the sweep that is called again; None: no sweep.
    """

    sizes: tuple[Size, ...] = (
        Size(depth=2, dim=64, heads=4, n=49, batch=64, tokens=18, max_pos=32, repeats=31, slow=15),
        Size(depth=4, dim=128, heads=4, n=256, batch=16, repeats=9, slow=3),
        Size(depth=6, dim=256, heads=8, n=512, batch=4, repeats=9, slow=2),
    )
    rows: tuple[Rows, ...] = (
        Rows(n=48, b=64, h=4, d=16, max_pos=32, repeats=51),
        Rows(n=128, b=32, h=4, d=32, repeats=31),
        Rows(n=256, b=16, h=4, d=32, repeats=21),
        Rows(n=512, b=4, h=8, d=32),
        Rows(n=1024, b=1, h=8, d=64),
        Rows(n=4096, b=1, h=8, d=64, repeats=5),
    )
    profiles: int = 40
    calls: int = 5
    again: tuple[str, ...] | None = ("train.steps=2", "evaluate.batches=1")


FULL = Scale()
QUICK = Scale(
    sizes=tuple(Size(depth=1, dim=32, heads=2, n=n, batch=2, tokens=18) for n in (8, 12, 16)),
    rows=tuple(Rows(n=n, b=1, h=2, d=16, repeats=1) for n in (8, 12, 16, 24, 32, 48)),
    profiles=2,
    calls=1,
    again=None,
)

# -- train steps ---------------------------------------------------------------------------------

PLAIN = "plain"
"""The model that all are measured over, among the contenders."""


def theirs(name: str) -> str:
    """x-transformers' model under a scheme, among the contenders."""
    return f"{name}, x-transformers"


def contenders(size: Size, names: Sequence[str]) -> dict[str, Work]:
    """A train step of each model: forward, cross-entropy, backward, AdamW.

    All train on the same random tokens. Under a scheme that x-transformers has, its model and ours
    begin with the same weights.

    Args:
        size: of all models.
        names: `PLAIN`, schemes for ours under them, and what `theirs` makes of them.
    """
    torch.manual_seed(0)
    x = torch.randint(size.tokens, (size.batch, size.n + 1))
    nets: dict[str, nn.Module] = {
        PLAIN: PlainDecoder(size.tokens, size.dim, size.depth, size.heads)
    }
    layers: dict[str, Any] = {
        "dim": size.dim,
        "depth": size.depth,
        "heads": size.heads,
        "attn_dim_head": size.dim // size.heads,
        "verbose": False,
    }
    for name in schemes():
        if name not in names and theirs(name) not in names:
            continue
        pair = rivals(name, size.n, size.tokens, layers, size.max_pos)
        if pair is None:
            decoder = Decoder(**layers, position=position(name))
            nets[name] = TransformerWrapper(
                num_tokens=size.tokens, max_seq_len=size.n, attn_layers=decoder
            )
        else:
            nets[name], nets[theirs(name)] = pair.ours, pair.theirs
    return {name: cope.training(nets[name], x) for name in names}


# -- commands ------------------------------------------------------------------------------------


def called(arguments: Iterable[str], code: int = 0) -> float:
    """Seconds that ``xcope`` takes in a process of its own.

    Raises:
        RuntimeError: it ends with another exit code.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "xcope", *arguments]
    start = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    taken = time.perf_counter() - start
    if process.returncode != code:
        raise RuntimeError(f"{command} ended with {process.returncode}: {process.stderr}")
    return taken
