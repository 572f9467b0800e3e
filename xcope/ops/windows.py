"""Windows: which keys a query sees beside causal order, as two bounds for each query.

A window is int32 (1 2 i) or (b 2 i): of queries that are aligned to the end of j keys, query n sees
key t only where t < window[:, 0, n] (the first ones of its row, or what has no place) or
window[:, 1, n] ≤ t (the near ones). Keys between the two bounds are hidden from it, and what hides
them from all queries of a tile is not computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.errors import FlagError
from xcope.ops.inputs import require_device, shape
from xcope.ops.terms import without_keys

Inputs = TypeVar("Inputs")


def last_keys(size: int, i: int, j: int, device: torch.device) -> Tensor:
    """The window of i queries that see their last ``size`` keys, themselves included."""
    near = torch.arange(j - i + 1 - size, j + 1 - size, device=device, dtype=torch.int32)
    return torch.stack((torch.zeros_like(near), near.clamp(min=0)))[None]


def checked(window: Tensor | int | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The window of q (b h i d) and k (b hk j d); a whole number means `last_keys`.

    Raises:
        FlagError: it does not fit.
    """
    b, i, j = q.shape[0], q.shape[2], k.shape[2]
    if window is None:
        return None
    if not isinstance(window, Tensor):
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise FlagError(
                "window",
                f"window={window!r} is not allowed: how many keys a query sees, 1 or more, or two "
                f"bounds for each query, int32 (1 2 {i}) or ({b} 2 {i})",
            )
        return last_keys(window, i, j, q.device)
    fits = window.ndim == 3 and window.shape[1] == 2 and window.shape[2] == i
    if window.dtype != torch.int32 or not fits or window.shape[0] not in (1, b):
        raise FlagError(
            "window",
            f"window {shape(window)} {window.dtype} must be int32 and have two bounds for each "
            f"query, (1 2 {i}) or ({b} 2 {i})",
        )
    require_device("window", window, q)
    return window


def within(window: Tensor, keys: slice) -> Tensor:
    """Which of these keys each query sees: bool (1 1 i K) or (b 1 i K)."""
    key = torch.arange(keys.start, keys.stop, device=window.device, dtype=window.dtype)
    first, near = window[:, None, 0, :, None], window[:, None, 1, :, None]
    return (key < first) | (key >= near)


def masked_within(mask: Tensor | None, window: Tensor | None, j: int) -> Tensor | None:
    """A mask, (b j) or one that broadcasts to (b h i j), with a window of j keys written out."""
    if window is None:
        return mask
    seen = within(window, slice(0, j))
    if mask is None:
        return seen
    return seen & (mask[:, None, None, :] if mask.ndim == 2 else mask)


def of_tokens(window: Tensor, tokens: slice) -> Tensor:
    """The window among these of i = j tokens."""
    its: Tensor = window[..., tokens] - tokens.start
    return its.clamp(min=0)


def gap(window: Tensor, j: int) -> tuple[int, int]:
    """The keys that no query sees for their window: first, and the one past the last of them.

    Looks at numbers, so that it waits for the device.
    """
    first, near = int(window[:, 0].max()), min(int(window[:, 1].min()), j)
    return (first, near) if near > first else (0, 0)


def around(t: Tensor, hidden: tuple[int, int], dim: int) -> Tensor:
    """A tensor over keys without those of a `gap`; a view where these are the first ones."""
    first, past = hidden
    rest = t.narrow(dim, past, t.shape[dim] - past)
    return rest if first == 0 else torch.cat((t.narrow(dim, 0, first), rest), dim=dim)


def moved(window: Tensor, hidden: tuple[int, int]) -> Tensor | None:
    """The window among the keys around a `gap`; None: queries see all of these."""
    first, past = hidden
    if window.shape[0] * window.shape[2] == 1:
        return None
    lead, near = window.unbind(1)
    return torch.stack((lead, near - (past - first)), dim=1)


def narrowed(inputs: Inputs) -> Inputs:
    """The same attention without the keys that no query sees for its window.

    Waits for the device.

    Args:
        inputs: a dataclass with q (b h i d), k (b hk j d), v, mask, bias and window; if it has
            ``gate_k``, too, that is cut as keys are.
    """
    given: Any = inputs
    if given.window is None:
        return inputs
    j = given.k.shape[2]
    hidden = gap(given.window, j)
    if hidden == (0, 0):
        return inputs
    cut: dict[str, Any] = {
        name: around(t, hidden, 2)
        for name in ("k", "v", "gate_k")
        if (t := getattr(given, name, None)) is not None
    }
    if given.mask is not None and given.mask.shape[-1] > 1:
        cut["mask"] = around(given.mask, hidden, given.mask.ndim - 1)
    if given.bias is not None:
        cut["bias"] = without_keys(given.bias, *hidden, among=j)
    return replace(given, window=moved(given.window, hidden), **cut)  # type: ignore[no-any-return]


def tile_bounds(window: Tensor, queries: int) -> list[tuple[int, int]]:
    """For each tile of so many queries: the bounds outside of which it sees no key.

    Waits for the device.
    """
    first, near = window.amax(0)[0], window.amin(0)[1]
    rest = -first.shape[-1] % queries
    first = F.pad(first, (0, rest)).view(-1, queries).amax(-1)
    near = F.pad(near, (0, rest), value=torch.iinfo(near.dtype).max).view(-1, queries).amin(-1)
    return list(zip(first.tolist(), near.tolist(), strict=True))
