"""Tile sizes for FlexAttention's kernels where a bias or mask is looked up in them.

PyTorch's own sizes are for bare attention. What is looked up for a tile is loaded ahead as keys
are, into shared memory, and held in registers: with those sizes there is not enough of either.
These compile for compute capability 9.0 with at most 140 KB of shared memory, and spill few
registers or, with 256 dimensions and in float32's backward, about as many as PyTorch's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

Options = tuple[tuple[str, Any], ...]


class Tiles(NamedTuple):
    """Of one kind of kernel.

    Args:
        forward: queries and keys of a tile, stages, warps.
        backward: queries and keys of a tile for the gradients of keys (for those of queries it
            is keys and queries), stages, warps.
    """

    forward: tuple[int, int, int, int]
    backward: tuple[int, int, int, int]


# by dimensions of a head, at most
HALF = {
    64: Tiles((128, 64, 2, 8), (64, 128, 2, 8)),
    128: Tiles((128, 64, 2, 8), (64, 64, 2, 8)),
    256: Tiles((64, 32, 2, 4), (32, 32, 2, 4)),
}
HALF_LEAN = {
    64: Tiles((64, 64, 2, 4), (32, 64, 2, 4)),
    128: Tiles((128, 32, 2, 8), (32, 32, 2, 4)),
    256: Tiles((64, 32, 2, 4), (32, 32, 2, 4)),
}
"""For a bias that needs many registers itself, or a GPU with little shared memory."""
SINGLE = {
    64: Tiles((32, 32, 2, 4), (16, 16, 1, 4)),
    128: Tiles((32, 32, 2, 4), (16, 16, 1, 4)),
    256: Tiles((32, 16, 1, 4), (16, 16, 1, 4)),
}


def options(dtype: torch.dtype, dim: int, bare: bool, heavy: bool, gpu: tuple[int, int]) -> Options:
    """FlexAttention's ``kernel_options``.

    Args:
        dtype: of queries.
        dim: of a head, of keys or values, whichever is more.
        bare: no bias and no mask are looked up.
        heavy: the bias is `xcope.ops.biased.terms.Piecewise`.
        gpu: its compute capability.
    """
    # its kernels for a few queries are of no use to training, and would be compiled beside
    found: dict[str, Any] = {"FORCE_USE_FLEX_ATTENTION": True}
    if bare and dim & (dim - 1) == 0:
        return tuple(found.items())
    # where a block can have 163 KB of shared memory or more; elsewhere, 99
    roomy = 9 <= gpu[0] <= 11 or gpu in ((8, 0), (8, 7))
    table = SINGLE if dtype == torch.float32 else HALF if roomy and not heavy else HALF_LEAN
    tiles = next(tiles for most, tiles in table.items() if dim <= most)
    m, n, stages, warps = tiles.forward
    found |= {"fwd_BLOCK_M": m, "fwd_BLOCK_N": n}
    found |= {"fwd_num_stages": stages if roomy else 1, "fwd_num_warps": warps}
    m, n, stages, warps = tiles.backward
    found |= {"bwd_BLOCK_M1": m, "bwd_BLOCK_N1": n, "bwd_BLOCK_M2": n, "bwd_BLOCK_N2": m}
    found |= {"bwd_num_stages": stages if roomy else 1, "bwd_num_warps": warps}
    return tuple(found.items())
