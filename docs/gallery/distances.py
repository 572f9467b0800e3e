"""Schemes of the input, rotation and bias slots: what they do at a distance of query and key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from gallery.examples import GEOMETRY, TRAINED_LEN, built
from gallery.panel import MAX_DISTANCE, SIGNED, Panel, legend, log_distance, scale, shades
from xcope.plotting import BLUE, GREY, ORANGE
from xcope.positions import Scheme, scheme

PLAIN = "rotary"
"""The rotation that the others are compared with."""
VECTORS = 64
"""Random queries, over which a rotation's kernel is a mean."""
LARGE = 100.0
"""Biases beyond it are shown on a logarithmic axis."""


# -- input ---------------------------------------------------------------------------------------


def input_panels(one: Scheme) -> list[Panel]:
    """The kernel against the distance, and the vectors."""
    vectors = added(one)

    def draw_likeness(axes: Axes) -> None:
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.plot(likeness(vectors).numpy(), color=BLUE, linewidth=1.6)
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
        Panel("likeness of two places, ⟨e_i, e_j⟩ / ⟨e_i, e_i⟩", draw_likeness, "distance i − j"),
        Panel("what is added", draw_vectors, "channel", "place"),
    ]


def added(one: Scheme) -> Tensor:
    """The vectors of all places up to ``max_seq_len``, (n dim)."""
    with torch.no_grad():
        vectors: Tensor = built(one)(torch.zeros(1, GEOMETRY.max_seq_len, dtype=torch.long))
    return vectors.reshape(-1, GEOMETRY.dim)


def likeness(vectors: Tensor) -> Tensor:
    """⟨e_i, e_j⟩ averaged over the pairs of each distance, over its value at distance 0; (n)."""
    products = vectors @ vectors.mT
    mean = torch.stack([products.diagonal(-distance).mean() for distance in range(len(vectors))])
    return mean / mean[0]


# -- rotation ------------------------------------------------------------------------------------


def rotation_panels(one: Scheme) -> list[Panel]:
    """The kernel over a logarithmic and a linear axis, and what each channel adds to it."""
    module = built(one)
    curves = {last: kernel(module, last) for last in text_ends(one, module)}
    plain = kernel(built(scheme(PLAIN)), MAX_DISTANCE)
    trained = getattr(one, "trained_len", None)

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="not turned")
        if one.name != PLAIN:
            axes.plot(*_numpy(*plain), color=GREY, linewidth=0.8, label=PLAIN)
        for (last, curve), colour in zip(curves.items(), (BLUE, ORANGE), strict=False):
            label = f"text of {last + 1} tokens" if module.length_dependent else one.name
            axes.plot(*_numpy(*curve), color=colour, linewidth=1.1, label=label)
        if trained is not None:
            axes.axvline(trained, color=ORANGE, linewidth=1, linestyle=":", label="trained_len")

    def draw_on_log(axes: Axes) -> None:
        draw(axes)
        log_distance(axes)
        legend(axes, where="lower left")

    def draw_on_linear(axes: Axes) -> None:
        draw(axes)
        axes.set_xlim(0, MAX_DISTANCE)
        axes.set_xticks(range(0, MAX_DISTANCE + 1, 1024))

    what = "mean q·k over that at 0" if module.widens else "mean q·k"
    panels = [
        Panel(f"{what}, random unit q = k", draw_on_log, "distance i − j"),
        Panel("the same", draw_on_linear, "distance i − j"),
    ]
    if not module.widens:
        panels.append(
            Panel("of each channel, over that at 0", _channels(module), "distance i − j", "channel")
        )
    return panels


def text_ends(one: Scheme, module: Any) -> list[int]:
    """The last places of the texts that are drawn: several where the turn depends on them."""
    trained = getattr(one, "trained_len", None) or TRAINED_LEN
    return [trained - 1, MAX_DISTANCE] if module.length_dependent else [MAX_DISTANCE]


def kernel(module: Any, last: int) -> tuple[Tensor, Tensor]:
    """The distances, and E[turned q · turned k] at each of them; (n) both.

    Over its value at distance 0 where the scheme widens q and k, which then have other lengths.
    """
    distance, share = products(module, last)
    mean = share.sum(-1)
    return distance, mean / mean[0] if module.widens else mean


def products(module: Any, last: int) -> tuple[Tensor, Tensor]:
    """E[turned q_c · turned k_c] for channel c, of one query at place ``last``.

    The mean over random directions q = k, unit vectors, and over the heads.

    Returns:
        distances (n) from 0 on, and the means (n d').
    """
    distance = distances(last)
    k_pos = last - distance.flip(0)  # the query stands at the last of its keys
    generator = torch.Generator().manual_seed(0)
    shape = (VECTORS, GEOMETRY.heads, 1, GEOMETRY.dim_head)
    q = F.normalize(torch.randn(shape, generator=generator), dim=-1)
    with torch.no_grad():
        turned_q, turned_k = module.rotate(q, q.expand(-1, -1, len(k_pos), -1), k_pos[-1:], k_pos)
        share: Tensor = (turned_q * turned_k).mean((0, 1))
    return distance, share.flip(0)


def distances(last: int) -> Tensor:
    """0 … ``last``: all short ones, and steps that a reader does not see among the long ones."""
    return torch.tensor(sorted({*range(min(64, last)), *range(64, last, 8), last}))


def _channels(module: Any) -> Callable[[Axes], None]:
    distance, share = products(module, MAX_DISTANCE)

    def draw(axes: Axes) -> None:
        x, c = distance.numpy(), torch.arange(share.shape[-1]).numpy()
        values = (share / share[0]).mT.numpy()
        image = axes.pcolormesh(x, c, values, cmap=SIGNED, vmin=-1, vmax=1, rasterized=True)
        log_distance(axes)
        axes.set_yticks(range(0, len(c) + 1, 16))
        axes.grid(visible=False)
        axes.invert_yaxis()
        scale(axes, image)

    return draw


def _numpy(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


# -- bias ----------------------------------------------------------------------------------------


def bias_panels(one: Scheme) -> list[Panel]:
    """The bias, and the share of attention within a distance where q·k is the same everywhere.

    Where that is the same at every distance before training, of parameters moved apart by hand.
    """
    module, apart = built(one), ""
    far = bias(module, MAX_DISTANCE)
    if not (far - far[:, :1]).any():
        apart = ", parameters moved by −0.7 to 0.7"
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.linspace(-0.7, 0.7, len(parameter)))
        far = bias(module, MAX_DISTANCE)
    near = bias(module, TRAINED_LEN - 1)
    # a query near the start may see other biases at the same distances
    moves = not torch.allclose(near, far[:, : near.shape[-1]], atol=1e-4)

    def draw_bias(axes: Axes) -> None:
        for h, colour in enumerate(shades(len(far))):
            axes.plot(far[h].numpy(), color=colour, linewidth=1.5, label=f"head {h + 1}")
            if moves:
                axes.plot(near[h].numpy(), color=colour, linewidth=1.1, linestyle=":")
        log_distance(axes)
        if far.abs().max() > LARGE:
            axes.set_yscale("symlog", linthresh=1)
            axes.set_ylim(min(1.3 * float(far.min()), -0.5), max(1.3 * float(far.max()), 0.5))
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            axes.minorticks_off()
        legend(axes, columns=2)

    def draw_share(axes: Axes) -> None:
        within = far.softmax(-1).cumsum(-1)
        uniform = torch.arange(1, far.shape[-1] + 1) / far.shape[-1]
        axes.plot(uniform.numpy(), color=GREY, linewidth=1, linestyle="--", label="without bias")
        for share, colour in zip(within, shades(len(far)), strict=True):
            axes.plot(share.numpy(), color=colour, linewidth=1.5)
        log_distance(axes)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
        legend(axes)

    title = f"bias of each head{apart}"
    if moves:
        title += f", query at place {MAX_DISTANCE} (line), {TRAINED_LEN - 1} (dots)"
    return [
        Panel(title, draw_bias, "distance i − j"),
        Panel("attention up to a distance, if q·k is 0", draw_share, "distance i − j"),
    ]


def bias(module: Any, last: int) -> Tensor:
    """b at distances 0 … ``last`` of one query at place ``last``, (h last + 1)."""
    k_pos = torch.arange(last + 1)
    with torch.no_grad():
        dense: Tensor = module.dense(k_pos[-1:], k_pos)
    return dense.reshape(-1, last + 1).flip(-1)
