"""Which tiles FlexAttention's kernels visit, and how large they are.

Causality, windows and packed documents are a block mask (`block_mask`), made of the first and the
last token of each block, and of the bounds of its queries' windows, only: nothing of (i j) is
written down, and nothing waits for the device.

PyTorch's own sizes are for bare attention. What is looked up for a tile of a bias or a mask is
loaded ahead as keys are, into shared memory, and held in registers: with those sizes there is not
enough of either. The sizes in `options` compile for compute capability 9.0 with at most 140 KB of
shared memory, and spill few registers or, with 256 dimensions and in float32's backward, about as
many as PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.weak import WeakTensorKeyDictionary

from xcope.ops.documents import document_of

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

BLOCK = 128
OF_DOCUMENTS = WeakTensorKeyDictionary()
"""cu_seqlens → ((its version, causal), block mask): layers share the mask, while it lives."""
OF_WINDOWS = WeakTensorKeyDictionary()
"""window → ((its version, i, j, causal), block mask)."""


def block_mask(
    i: int,
    j: int,
    causal: bool,
    cu_seqlens: Tensor | None,
    device: torch.device,
    window: Tensor | None = None,
) -> BlockMask | None:
    """What i queries, aligned to the end of j keys, see; None: everything.

    Args:
        i: number of queries.
        j: number of keys.
        causal: query i sees keys up to its own place.
        cu_seqlens: of packed documents, see `xcope.ops.documents`; on ``device``.
        device: of the queries.
        window: see `xcope.ops.windows`.
    """
    with torch.inference_mode(False):  # else one that is kept could not be used in training
        if window is not None:
            return _of_window(window, i, j, causal, cu_seqlens)
        if cu_seqlens is not None:
            return _of_documents(cu_seqlens, i, causal)
        if not causal:
            return None
        return (_of_causality if torch.compiler.is_compiling() else _kept)(i, j, device)


def _of_causality(i: int, j: int, device: torch.device) -> BlockMask:
    offset = None if i == j else torch.full((), j - i, dtype=torch.int32, device=device)
    (q_first, q_last), (k_first, k_last) = (_ends(n, device) for n in (i, j))
    some = k_first <= q_last[:, None] + (j - i)
    every = k_last <= q_first[:, None] + (j - i)
    return _blocks(some, every, _sees(True, None, offset), i, j)


_kept = lru_cache(maxsize=16)(_of_causality)


def _of_window(
    window: Tensor, i: int, j: int, causal: bool, cu_seqlens: Tensor | None
) -> BlockMask:
    """Layers of one call share it, as they share the window."""
    if torch.compiler.is_compiling() or window.is_inference():
        return _new_of_window(window, i, j, causal, cu_seqlens)
    now = window._version, i, j, causal
    if window not in OF_WINDOWS or OF_WINDOWS[window][0] != now:
        OF_WINDOWS[window] = now, _new_of_window(window, i, j, causal, cu_seqlens)
    return cast(BlockMask, OF_WINDOWS[window][1])


def _new_of_window(
    window: Tensor, i: int, j: int, causal: bool, cu_seqlens: Tensor | None
) -> BlockMask:
    device = window.device
    (q_first, q_last), (k_first, k_last) = (_ends(n, device) for n in (i, j))
    # (I BLOCK), the last query in place of those that there are not
    queries = (q_first[:, None] + torch.arange(BLOCK, device=device)).clamp(max=i - 1)
    lead, near = window[:, :, queries].unbind(1)
    (lead_least, lead_most), (near_least, near_most) = (t.aminmax(dim=-1) for t in (lead, near))
    some = (k_first < lead_most[..., None]) | (k_last >= near_least[..., None])
    every = (k_last < lead_least[..., None]) | (k_first >= near_most[..., None])
    if causal:
        some &= k_first <= q_last[:, None] + (j - i)
        every &= k_last <= q_first[:, None] + (j - i)
    document = None
    if cu_seqlens is not None:
        document = document_of(cu_seqlens, j).int()
        low, high = document[k_first], document[k_last]
        some &= (low <= high[:, None]) & (low[:, None] <= high)
        every &= (low == high[:, None]) & (low[:, None] == high)
    offset = None if i == j else torch.full((), j - i, dtype=torch.int32, device=device)
    return _blocks(some, every, _sees(causal, document, offset, window), i, j)


def _of_documents(cu_seqlens: Tensor, n: int, causal: bool) -> BlockMask:
    if torch.compiler.is_compiling() or cu_seqlens.is_inference():  # which have no version
        return _new_of_documents(cu_seqlens, n, causal)
    now = cu_seqlens._version, causal
    if cu_seqlens in OF_DOCUMENTS and OF_DOCUMENTS[cu_seqlens][0] == now:
        return cast(BlockMask, OF_DOCUMENTS[cu_seqlens][1])
    blocks = _new_of_documents(cu_seqlens, n, causal)
    OF_DOCUMENTS[cu_seqlens] = now, blocks
    return blocks


def _new_of_documents(cu_seqlens: Tensor, n: int, causal: bool) -> BlockMask:
    document = document_of(cu_seqlens, n).int()
    first, last = _ends(n, cu_seqlens.device)
    low, high = document[first], document[last]
    some = (low <= high[:, None]) & (low[:, None] <= high)
    every = (low == high[:, None]) & (low[:, None] == high)
    if causal:
        some &= first <= last[:, None]
        every &= last <= first[:, None]
    return _blocks(some, every, _sees(causal, document, None), n, n)


def _sees(
    causal: bool, document: Tensor | None, offset: Tensor | None, window: Tensor | None = None
) -> Sees:
    """Whether a query sees a key. Numbers are tensors: for one, Dynamo would compile again."""
    many = window is not None and len(window) > 1

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = document[query] == document[key] if document is not None else key >= 0
        if causal:
            seen = seen & (key <= (query if offset is None else query + offset))
        if window is not None:
            row = b if many else b * 0
            near = (key < window[row, 0, query]) | (key >= window[row, 1, query])
            seen = seen & near
        return seen

    return sees


def _ends(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and last token of each block."""
    first = torch.arange(0, n, BLOCK, device=device)
    return first, (first + (BLOCK - 1)).clamp(max=n - 1)


def _blocks(some: Tensor, every: Tensor, sees: Sees, i: int, j: int) -> BlockMask:
    """From bool (I J) or (b I J): which blocks have a visible pair, and which have no other."""
    # as FlexAttention has it, blocks that reach over an end are never whole
    every = every & _whole(i, some.device)[:, None] & _whole(j, some.device)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(i, j),
    )


def _whole(n: int, device: torch.device) -> Tensor:
    return torch.arange(BLOCK, n + BLOCK, BLOCK, device=device) <= n


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many there are in each row, (b 1 I), and which, those first, (b 1 I J); int32."""
    blocks = blocks.view(-1, 1, *blocks.shape[-2:])
    numbers = blocks.sum(-1, dtype=torch.int32)
    return numbers, blocks.int().argsort(dim=-1, descending=True, stable=True).int()


# -- sizes ---------------------------------------------------------------------------------------

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
        heavy: the bias is `xcope.ops.terms.Piecewise`.
        gpu: its compute capability.
    """
    # its kernels for a few queries are of no use to training, and would be compiled too
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
