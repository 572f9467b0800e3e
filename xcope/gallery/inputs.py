"""Schemes of the input slot: the vectors that are added, and how alike those of two places are."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from torch import Tensor

from xcope.gallery.example import GEOMETRY, built
from xcope.gallery.style import BLUE, GREY, SIGNED, Panel, scale
from xcope.positions import Scheme


def input_panels(one: Scheme) -> list[Panel]:
    """The kernel against the distance, and the vectors."""
    vectors = added(one)

    def draw_kernel(axes: Axes) -> None:
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.plot(kernel(vectors).numpy(), color=BLUE, linewidth=1.6)
        axes.set_xlim(-4, len(vectors))

    def draw_vectors(axes: Axes) -> None:
        most = float(vectors.abs().max())
        shown = vectors.numpy()
        image = axes.imshow(
            shown, SIGNED, aspect="auto", vmin=-most, vmax=most, interpolation="nearest"
        )
        scale(axes, image)
        axes.grid(visible=False)

    return [
        Panel("likeness of two places, ⟨e_i, e_j⟩ / ⟨e_i, e_i⟩", draw_kernel, "distance i − j"),
        Panel("what is added", draw_vectors, "channel", "place"),
    ]


def added(one: Scheme) -> Tensor:
    """The vectors of all places up to ``max_seq_len``, (n dim)."""
    with torch.no_grad():
        vectors: Tensor = built(one)(torch.zeros(1, GEOMETRY.max_seq_len, dtype=torch.long))
    return vectors.reshape(-1, GEOMETRY.dim)


def kernel(vectors: Tensor) -> Tensor:
    """⟨e_i, e_j⟩ averaged over the pairs of each distance, over its value at distance 0; (n)."""
    products = vectors @ vectors.mT
    mean = torch.stack([products.diagonal(-distance).mean() for distance in range(len(vectors))])
    return mean / mean[0]
