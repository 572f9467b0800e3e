"""Why Triton's kernels do not run, where they do not; logged once for each reason."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

log = logging.getLogger(__name__)

OLDEST = (8, 0)  # compute capability: Ampere
INSTALLED = find_spec("triton") is not None


def capability(on: Tensor) -> tuple[int, int]:
    """Compute capability of the GPU that a tensor is on."""
    return torch.cuda.get_device_capability(on.device)


def first_reason(on: Tensor, reasons: dict[str, bool]) -> str | None:
    """Why Triton's kernels do not run at all, or else the first reason that holds; None: they run.

    on: a tensor where they would run; reasons: why they would not, and whether that is so.
    """
    too_old = on.device.type == "cuda" and capability(on) < OLDEST
    general = {
        "Triton is not installed": not INSTALLED,
        f"the GPU's compute capability is below {OLDEST[0]}.{OLDEST[1]}": too_old,
    }
    return next((reason for reason, holds in (general | reasons).items() if holds), None)


@cache
def _warn(what: str, reason: str) -> None:
    log.warning("%s runs in PyTorch operations, several times slower: %s", what, reason)


def warn(what: str, reason: str) -> None:
    """Log, once for each reason, that something takes longer than it need."""
    _warn(what, reason)


# logged while compiling, it cuts no graph in two
torch.compiler.assume_constant_result(warn)  # type: ignore[no-untyped-call]
