"""The two ways in which tiled attention is computed: in torch operations, and compiled."""

import pytest
import torch

from xcope.ops import compiled
from xcope.ops.biased.cpu import walk as biased_walk
from xcope.ops.cope.cpu import walk as cope_walk
from xcope.ops.tiling import tiles

WAYS = ["eager", "compiled"]


def take(way: str, monkeypatch) -> str:
    """Compute in this way where it is possible; tiles so small that little input needs many."""
    small_tiles(monkeypatch)
    if way == "eager":
        for walk in (biased_walk, cope_walk):
            monkeypatch.setattr(walk, "call_for", lambda q: None)
    elif compiled.call_for(torch.empty(0)) is None:
        pytest.skip("there are no compiled kernels on this machine")
    return way


def small_tiles(monkeypatch) -> None:
    for name, small in {"QUERIES": 16, "KEYS": 64, "AREA": 2**12}.items():
        monkeypatch.setattr(tiles, name, small)
