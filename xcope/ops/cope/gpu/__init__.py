"""CoPE attention on GPUs, by Triton, which may be missing: this file says what its kernels take."""

from __future__ import annotations

from importlib import metadata

import torch

from xcope.ops.cope.inputs import CopeInputs
from xcope.ops.fallback import INSTALLED, first_reason

WIDEST_HEAD = 256
LONGEST_TABLE = 2**14  # positions: with more, too few bits are left for the fraction of a count
OLDEST_TRITON = (3, 6)


def triton_version() -> str:
    """Of the installed Triton, whatever its distribution is called; empty where nothing tells."""
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _too_old(version: str) -> bool:
    numbers = version.split(".")[:2]
    known = all(number.isdecimal() for number in numbers)
    return known and tuple(map(int, numbers)) < OLDEST_TRITON


TRITON = triton_version()
TOO_OLD = INSTALLED and _too_old(TRITON)


def refusal(inputs: CopeInputs) -> str | None:
    """Why the kernels cannot take these inputs; None: they can."""
    widest = max(inputs.q.shape[-1], inputs.v.shape[-1])
    scale = inputs.scale
    max_pos = 0 if inputs.pos_emb is None else inputs.pos_emb.shape[-2]
    reasons = {
        "there are no kernels for it": inputs.recurrence != "count" or inputs.r is not None,
        f"Triton {TRITON} is older than {'.'.join(map(str, OLDEST_TRITON))}": TOO_OLD,
        f"the inputs are {inputs.q.dtype}": inputs.q.dtype == torch.float64,
        "the gates' heads are mixed (talking heads)": inputs.head_mix is not None,
        "the logits are biased": inputs.bias is not None,
        "a query sees a window of the keys": inputs.window is not None,
        "the softmax has a sink": inputs.sink is not None,
        f"a head has {widest} dimensions, above {WIDEST_HEAD}": widest > WIDEST_HEAD,
        f"max_pos is {max_pos}, above {LONGEST_TABLE}": max_pos > LONGEST_TABLE,
        f"the logits' scale is {scale}, not above 0": scale <= 0,
    }
    return first_reason(inputs.q, reasons)


def interpreted() -> bool:
    """Whether Triton's kernels run on the CPU: ``TRITON_INTERPRET=1``."""
    if not INSTALLED or TOO_OLD:
        return False
    from xcope.ops.cope.gpu import tuning  # noqa: PLC0415, Triton may be missing

    return tuning.INTERPRETED
