"""Schemes of the bias slot: the bias of each head at a distance, and where attention then goes."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from xcope.gallery.example import TRAINED_LEN, built
from xcope.gallery.style import GREY, MAX_DISTANCE, Panel, legend, log_distance, shades
from xcope.positions import Scheme

LARGE = 100.0
"""Biases beyond it are shown on a logarithmic axis."""


def bias_panels(one: Scheme) -> list[Panel]:
    """The bias, and the share of attention within a distance where q·k is the same everywhere."""
    module = built(one)
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

    title = "bias of each head"
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
