"""BAM: the logarithm of a generalized Gaussian as a bias; each head learns its width and shape.

Bianchessi, Aguirre, Barros, Kupssinskü, *Bayesian Attention Mechanism: A Probabilistic Framework
for Positional Encoding and Context Length Extrapolation*, arXiv 2505.22842.

    s_ij ← s_ij − exp(θα_h) (|j − i − μ_h| + ε)^(θβ_h),  μ = exp(θμ) − exp(−θμ),  ε = 1e-5

The prior of a key's place is the generalized Gaussian exp(−(|j − i − μ| / α)^β), with exp(θα) for
α^−β as in the authors' code. With θβ = 1 it is ALiBi, with θβ = 0 no position at all; below 0,
which is allowed, far keys are preferred to near ones. As in that code θα and θβ begin at 0, so that
a model begins without positions, and μ stays 0 unless ``train_mu``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xcope.positions.alibi import alibi_slopes
from xcope.positions.base import FINE, Geometry, IndexedScheme, Slot
from xcope.positions.distances import DistanceBias, real
from xcope.positions.registry import register

EPS = 1e-5


class BamBias(DistanceBias):
    """The bias of each query and key; the parameter names of the authors' code.

    Args:
        scales: (h), where exp(θα) begins.
        beta: where θβ begins.
        mu: where θμ begins.
        train_mu: θμ is learned.
    """

    def __init__(self, scales: list[float], beta: float, mu: float, train_mu: bool) -> None:
        super().__init__()
        heads = len(scales)
        self.theta_alpha = nn.Parameter(torch.tensor(scales, dtype=torch.get_default_dtype()).log())
        self.theta_beta = nn.Parameter(torch.full((heads,), float(beta)))
        self.theta_mu: Tensor
        if train_mu:
            self.theta_mu = nn.Parameter(torch.full((heads,), float(mu)))
        else:
            self.add_constant("theta_mu", [mu] * heads)

    def curve(self, distance: Tensor) -> Tensor:
        """See `DistanceBias`."""
        delta = real(distance, like=self.theta_beta)[..., None]  # i − j
        alpha, beta, mu = (
            real(theta, like=theta) for theta in (self.theta_alpha, self.theta_beta, self.theta_mu)
        )
        apart = (delta + 2 * mu.sinh()).abs() + EPS
        return -alpha.exp() * apart**beta


@register
@dataclass(frozen=True, kw_only=True)
class Bam(IndexedScheme):
    """``position: bam``.

    Args:
        beta_init: where the exponent θβ begins: 0, no position; 1, ALiBi.
        scale_init: where exp(θα) begins; ``"slopes"``: at ALiBi's slopes, one for each head.
        mu_init: where θμ begins; the distance that is preferred is exp(−θμ) − exp(θμ).
        train_mu: θμ is learned; if not, it stays at ``mu_init``.
        shared: all layers have the same numbers; if not, each has its own.
    """

    name: ClassVar[str] = "bam"
    title: ClassVar[str] = "Generalized Gaussian bias (BAM)"
    slot: ClassVar[Slot | None] = Slot.BIAS
    paper: ClassVar[str] = "arXiv 2505.22842"
    formula: ClassVar[str] = "q·k − exp(θα_h)(|j−i−μ_h| + ε)^θβ_h"
    oracle: ClassVar[str] = "formula"
    steps: ClassVar[int | None] = FINE
    authors: ClassVar[Mapping[str, Any]] = {
        "beta_init": 0.0,
        "scale_init": 1.0,
        "mu_init": 0.0,
        "train_mu": False,
        "shared": False,
    }

    beta_init: float = 0.0
    scale_init: float | str = 1.0
    mu_init: float = 0.0
    train_mu: bool = False
    shared: bool = False

    def build(self, geometry: Geometry) -> BamBias:
        """The bias of one layer, or of all."""
        scale = self.scale_init
        named = isinstance(scale, str)
        ok = scale == "slopes" if isinstance(scale, str) else scale > 0
        self.require(ok, "scale_init", "a number above 0, or 'slopes'")
        self.require(abs(self.mu_init) <= 20, "mu_init", "between −20 and 20: μ grows as its exp")
        scales = alibi_slopes(geometry.heads) if named else [float(scale)] * geometry.heads
        return BamBias(scales, self.beta_init, self.mu_init, self.train_mu)
