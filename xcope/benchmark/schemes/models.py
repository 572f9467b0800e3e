"""One-layer models that differ in who computes attention: x-transformers and ours.

They have no feed-forward, few tokens, one set of flags and the same parameters. What differs is
all between the token ids and the logits that a scheme takes part in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xcope.benchmark.measure import Work
from xcope.benchmark.schemes.workloads import DIM, DIM_HEAD, HEADS
from xcope.modules import Decoder, TransformerWrapper
from xcope.modules.seam import UpstreamDecoder, UpstreamTransformerWrapper
from xcope.positions import schemes

TOKENS = 16
LAYER: dict[str, Any] = {
    "dim": DIM,
    "depth": 1,
    "heads": HEADS,
    "attn_dim_head": DIM_HEAD,
    "custom_layers": ("a",),
    "verbose": False,
}


@dataclass(frozen=True)
class Rivals:
    """The same model twice.

    Args:
        flash: whether x-transformers' has flash attention; schemes that it refuses this for hold
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


def rivals(name: str, n: int) -> Rivals | None:
    """Models under a scheme for up to n tokens; None where x-transformers has no such scheme."""
    counterpart = schemes()[name].counterpart()
    if counterpart is None:
        return None
    layers, wrapper = counterpart
    size: dict[str, Any] = {"num_tokens": TOKENS, "max_seq_len": n}
    torch.manual_seed(0)
    flash = True
    try:
        decoder = UpstreamDecoder(**LAYER, **layers, attn_flash=True)
    except AssertionError:  # its refusal
        flash = False
        decoder = UpstreamDecoder(**LAYER, **layers)
    theirs = UpstreamTransformerWrapper(**size, **wrapper, attn_layers=decoder)
    ours = TransformerWrapper(**size, attn_layers=Decoder(**LAYER, position=name))
    ours.load_state_dict(theirs.state_dict())
    return Rivals(theirs, ours, flash)


def _train(model: nn.Module, x: Tensor) -> None:
    logits = model(x)
    torch.autograd.grad(logits, list(model.parameters()), torch.ones_like(logits))
