"""How the Triton kernels of CoPE attention are cut into tiles, and tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import triton

from xcope.ops.cope.gpu import kernels

INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut: queries and keys in a tile, warps of a program, stages of its loads.

    Where queries own a program, it counts with C keys at a time: that is where registers are short.
    A limit of registers for a thread is given where one program more then fits beside the others,
    and few or none are spilled.
    """

    M: int
    N: int
    warps: int
    stages: int
    C: int | None = None
    registers: int | None = None

    def __str__(self) -> str:
        c = "" if self.C is None else f" ({self.C})"
        return f"tiles {self.M} × {self.N}{c}, {self.warps} warps, {self.stages} stages"

    @property
    def meta(self) -> dict[str, int]:
        """The sizes that a kernel is told."""
        sizes = {"M": self.M, "N": self.N}
        return sizes if self.C is None else sizes | {"C": self.C}


@dataclass(frozen=True)
class Choice:
    """The tiles to choose from, by time, for a head this wide.

    Args:
        forward: N is a multiple of C.
        backward_q: M is a multiple of ``piece``; N, the same for all, a multiple of C.
        backward_k: its N is that of ``backward_q``, each M a divisor of the largest.
        backward_k_plain: one N for all, a multiple of the N of ``backward_k``.
        piece: rows for which the backward keeps where counting begins.
    """

    forward: tuple[Tiles, ...]
    backward_q: tuple[Tiles, ...]
    backward_k: tuple[Tiles, ...]
    backward_k_plain: tuple[Tiles, ...]
    piece: int = 64


NARROW = Choice(
    forward=(Tiles(64, 64, 4, 3, 32, registers=168), Tiles(64, 64, 4, 3, 64)),
    backward_q=(
        Tiles(64, 64, 4, 2, 32),
        Tiles(64, 64, 4, 3, 32),
        Tiles(64, 64, 4, 2, 16, registers=168),
    ),
    backward_k=(Tiles(64, 64, 4, 1), Tiles(128, 64, 8, 1)),
    backward_k_plain=(Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 3), Tiles(128, 64, 8, 2)),
)
MIDDLE = Choice(
    forward=(Tiles(64, 64, 4, 2, 32), Tiles(128, 64, 8, 2, 32)),
    backward_q=(Tiles(64, 64, 8, 1, 32),),
    backward_k=(Tiles(64, 64, 8, 1),),
    backward_k_plain=(Tiles(64, 64, 8, 2),),
)
WIDE = Choice(
    forward=(Tiles(64, 32, 8, 2, 32),),
    backward_q=(Tiles(64, 32, 8, 1, 32),),
    backward_k=(Tiles(64, 32, 8, 1),),
    backward_k_plain=(Tiles(64, 32, 8, 1),),
)
WIDEST = Choice(
    forward=(Tiles(32, 32, 4, 1, 32),),
    backward_q=(Tiles(32, 16, 4, 1, 16),),
    backward_k=(Tiles(32, 16, 4, 1),),
    backward_k_plain=(Tiles(32, 16, 4, 1),),
    piece=32,
)


def choice(width: int, itemsize: int) -> Choice:
    """By the bytes of a row: what fits into a multiprocessor's shared memory."""
    for most, tiles in ((128, NARROW), (256, MIDDLE), (512, WIDE)):
        if width * itemsize <= most:
            return tiles
    return WIDEST


@cache
def tuned(name: str, tiles: tuple[Tiles, ...]) -> Any:
    """A kernel that takes the fastest of these tiles, measured once for each of its keys.

    Keys are D, DV and dtypes, ``LENGTH``, the binary digits of the number of keys, and the flags
    that change the work: GATES, MASK, DOCS, CAUSAL.
    """
    configs = [
        triton.Config(t.meta, num_warps=t.warps, num_stages=t.stages, maxnreg=t.registers)
        for t in tiles
    ]
    keys = ["D", "DV", "LENGTH", "CAUSAL", "DOCS", "MASK", "GATES"]
    # where several chunks of queries add up in place, trying must not add more than once
    in_place = ["dk", "dv"] if name == "backward_k_plain" else None
    tune = triton.autotune(configs, key=keys, restore_value=in_place, do_bench=quick_bench)
    return tune(getattr(kernels, name))


def quick_bench(work: Callable[[], Any], quantiles: Sequence[float]) -> Any:
    """Milliseconds, at these quantiles."""
    return triton.testing.do_bench(work, warmup=5, rep=30, quantiles=quantiles)


def launch(name: str, tiles: tuple[Tiles, ...], grid: Any, arguments: dict[str, Any]) -> None:
    """Run a kernel with those of the arguments that it has; interpreted, with the first tiles."""
    kernel = getattr(kernels, name)
    mine = {key: arguments[key] for key in arguments.keys() & set(kernel.arg_names)}
    if INTERPRETED:
        kernel[grid(tiles[0].meta)](**mine, **tiles[0].meta)
    else:
        tuned(name, tiles)[grid](**mine)
