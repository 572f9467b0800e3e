"""Dynamic position bias: a small network reads the distance and gives each head its bias.

Wang et al., *CrossFormer*, arXiv 2108.00154; the logarithm of the distance is from
Liu et al., *Swin Transformer V2*, arXiv 2111.09883.

    s_ij ← s_ij + MLP(i − j)_h
    s_ij ← s_ij + MLP(sign(i − j) log(1 + |i − j|))_h        with log_distance

x-transformers' network has two hidden layers with SiLU and no norm. CrossFormer's has three, each
with layer norm and ReLU, which read two distances, down and across: ``start: authors`` is this
network for the one distance of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.positions.base import FINE, Geometry, IndexedScheme, Slot
from xcope.positions.distances import DistanceBias, distances, real, tabulated
from xcope.positions.registry import register

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


class ScaledLayerNorm(nn.Module):
    """Layer norm without a shift, in x-transformers' spelling."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(… dim) → (… dim)."""
        return F.layer_norm(x, self.gamma.shape, self.gamma.to(x.dtype))


def _wide(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) in the dtype of x, which may be wider than the layer's."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
    if isinstance(layer, nn.LayerNorm):
        weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    out: Tensor = layer(x)
    return out


class DynamicBias(DistanceBias):
    """The bias of each query and key; x-transformers' parameter names.

    Args:
        dim: width of the network.
        heads: of the decoder.
        depth: hidden layers.
        log_distance: the network reads the logarithm of the distance.
        norm: a layer norm in each hidden layer.
        activation: one of `ACTIVATIONS`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        log_distance: bool,
        norm: bool,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.log_distance = log_distance
        self.mlp = nn.ModuleList()
        for layer in range(depth):
            linear = nn.Linear(dim if layer else 1, dim)
            norms = [nn.LayerNorm(dim) if layer else ScaledLayerNorm(dim)] if norm else []
            self.mlp.append(nn.Sequential(linear, *norms, ACTIVATIONS[activation]()))
        self.mlp.append(nn.Linear(dim, heads))

    def curve(self, distance: Tensor) -> Tensor:
        """See `DistanceBias`."""
        weight = next(self.parameters())
        x = real(distance, like=weight)[..., None]
        if self.log_distance:
            x = x.sign() * torch.log1p(x.abs())
        with torch.autocast(x.device.type, enabled=False):  # as `real`
            for block in self.mlp:
                for layer in block if isinstance(block, nn.Sequential) else (block,):
                    x = _wide(layer, x)
        return x

    def dense(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """See `IndexBias`."""
        return tabulated(self.curve, distances(q_pos, k_pos)).movedim(-1, -3)


@register
@dataclass(frozen=True, kw_only=True)
class Dynamic(IndexedScheme):
    """``position: dynamic``.

    Args:
        log_distance: the network reads the logarithm of the distance.
        depth: hidden layers, each a quarter as wide as the decoder.
        norm: a layer norm in each of them.
        activation: after them: ``silu`` as x-transformers, or ``relu`` as CrossFormer.
    """

    name: ClassVar[str] = "dynamic"
    title: ClassVar[str] = "Dynamic position bias"
    slot: ClassVar[Slot | None] = Slot.BIAS
    paper: ClassVar[str] = "arXiv 2108.00154"
    formula: ClassVar[str] = "q·k + MLP(i−j)_h"
    oracle: ClassVar[str] = "x-transformers"
    upstream_switch: ClassVar[str | None] = "dynamic_pos_bias"
    upstream_options: ClassVar[dict[str, str]] = {
        "dynamic_pos_bias_log_distance": "log_distance",
        "dynamic_pos_bias_mlp_depth": "depth",
        "dynamic_pos_bias_norm": "norm",
    }
    upstream_kwargs: ClassVar[str | None] = "rel_pos_kwargs"
    steps: ClassVar[int | None] = FINE
    authors: ClassVar[Mapping[str, Any]] = {"depth": 3, "norm": True, "activation": "relu"}

    log_distance: bool = False
    depth: int = 2
    norm: bool = False
    activation: str = "silu"

    def build(self, geometry: Geometry) -> DynamicBias:
        """The bias, shared among layers."""
        self.require(self.depth >= 1, "depth", "it must be at least 1")
        self.require_among("activation", ACTIVATIONS)
        dim = geometry.dim // 4
        if dim < 1:
            raise FlagError(
                "dim",
                f"dim={geometry.dim} is not allowed with position 'dynamic', whose network is a "
                "quarter as wide: choose at least 4",
            )
        return DynamicBias(
            dim, geometry.heads, self.depth, self.log_distance, self.norm, self.activation
        )
