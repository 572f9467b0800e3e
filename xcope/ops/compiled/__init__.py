"""Attention compiled by numba, for float32 on CPUs: as fast as the machine's vectors."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from xcope.ops.compiled.call import Call

log = logging.getLogger(__name__)


@cache
def _call() -> type[Call] | None:
    try:
        from xcope.ops.compiled.call import Call  # noqa: PLC0415, numba may be missing
    except Exception as error:
        log.info("attention runs without compiled kernels, several times slower: %s", error)
        return None
    return Call


def call_for(q: Tensor) -> type[Call] | None:
    """What computes attention of these queries, or None: other numbers, another device, no numba.

    That there is no numba is said once.
    """
    return _call() if takes(q) else None


def takes(q: Tensor) -> bool:
    """Whether there is something to compute attention of these queries."""
    return q.device.type == "cpu" and q.dtype == torch.float32 and _available()


# what torch.compile traces it does not look into
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _available() -> bool:
    return _call() is not None
