"""Schemes of the rotation slot: what is left of q·k at a distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from xcope.gallery.example import GEOMETRY, TRAINED_LEN, built
from xcope.gallery.style import (
    BLUE,
    GREY,
    MAX_DISTANCE,
    ORANGE,
    SIGNED,
    Panel,
    legend,
    log_distance,
    scale,
)
from xcope.positions import Scheme, scheme

PLAIN = "rotary"
"""The scheme of this slot that the others are compared with."""
VECTORS = 64


def rotation_panels(one: Scheme) -> list[Panel]:
    """The kernel over a logarithmic and a linear axis, and what each channel adds to it."""
    module = built(one)
    curves = [(_name(module, last), *kernel(module, last)) for last in text_ends(one, module)]
    plain = kernel(built(scheme(PLAIN)), MAX_DISTANCE)
    trained = getattr(one, "trained_len", None)

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="not turned")
        if one.name != PLAIN:
            axes.plot(*_numpy(*plain), color=GREY, linewidth=0.8, label=PLAIN)
        for (label, *curve), colour in zip(curves, (BLUE, ORANGE), strict=False):
            axes.plot(*_numpy(*curve), color=colour, linewidth=1.1, label=label or one.name)
        if trained is not None:
            axes.axvline(trained, color=ORANGE, linewidth=1, linestyle=":", label="trained_len")

    what = "mean q·k over that at 0" if module.widens else "mean q·k"
    panels = [
        Panel(f"{what}, random unit q = k", _on_log(draw), "distance i − j"),
        Panel("the same", _on_linear(draw), "distance i − j"),
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


def _name(module: Any, last: int) -> str:
    return f"text of {last + 1} tokens" if module.length_dependent else ""


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


def _on_log(draw: Callable[[Axes], None]) -> Callable[[Axes], None]:
    def on_log(axes: Axes) -> None:
        draw(axes)
        log_distance(axes)
        legend(axes, where="lower left")

    return on_log


def _on_linear(draw: Callable[[Axes], None]) -> Callable[[Axes], None]:
    def on_linear(axes: Axes) -> None:
        draw(axes)
        axes.set_xlim(0, MAX_DISTANCE)
        axes.set_xticks(range(0, MAX_DISTANCE + 1, 1024))

    return on_linear


def _numpy(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]
