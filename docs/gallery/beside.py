"""Schemes of the mask, sink and scale slots: what stands beside positions."""

from __future__ import annotations

import dataclasses

import torch
from matplotlib.axes import Axes

from gallery.examples import built
from gallery.panel import MAX_DISTANCE, RISING, Panel, legend, log_distance, shades
from xcope.plotting import BLUE, GREY
from xcope.positions import Scheme
from xcope.positions.length_scale import KINDS

KEYS = 1024
"""Places of queries and keys that are drawn of a window."""
LOGITS = (-2.0, 0.0, 2.0, 4.0)
"""Of the sinks whose shares are drawn."""


def mask_panels(one: Scheme) -> list[Panel]:
    """Which keys a query sees: as the scheme says, and in its other ways."""
    ways = {
        "keys that a query sees": one,
        "with sinks: 32": dataclasses.replace(one, sinks=32),  # type: ignore[call-arg]
        "chunked": dataclasses.replace(one, chunked=True),  # type: ignore[call-arg]
    }
    return [_seen(title, way) for title, way in ways.items()]


def _seen(title: str, one: Scheme) -> Panel:
    rank = torch.arange(KEYS)
    first, near = (bound[:, None] for bound in built(one)(rank))
    seen = ((rank < first) | (rank >= near)) & (rank <= rank[:, None])

    def draw(axes: Axes) -> None:
        axes.imshow(seen.numpy(), RISING, interpolation="nearest")
        axes.grid(visible=False)

    return Panel(title, draw, "key j", "query i")


def sink_panels(one: Scheme) -> list[Panel]:
    """What a sink leaves to the keys, of how many they are."""
    n = torch.arange(1, MAX_DISTANCE + 1)

    def draw(axes: Axes) -> None:
        for logit, colour in zip(LOGITS, shades(len(LOGITS)), strict=True):
            kept = (n.log() - logit).sigmoid()
            axes.plot(n.numpy(), kept.numpy(), color=colour, linewidth=1.5, label=f"{logit:g}")
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="no sink")
        log_distance(axes)
        axes.set_ylim(0, 1.03)
        legend(axes)

    def draw_by_logit(axes: Axes) -> None:
        lse = torch.linspace(-6, 6, 200)
        for logit, colour in zip(LOGITS, shades(len(LOGITS)), strict=True):
            axes.plot(lse.numpy(), (lse - logit).sigmoid().numpy(), color=colour, linewidth=1.5)
        axes.set_ylim(0, 1.03)

    return [
        Panel("share left to n keys if q·k is 0, by the sink's logit", draw, "keys n"),
        Panel("share left to the keys", draw_by_logit, "log Σ exp of a query's logits"),
    ]


def scale_panels(one: Scheme) -> list[Panel]:
    """The factor of a query against its place, of each kind."""
    place = torch.arange(MAX_DISTANCE + 1)
    kinds = {
        kind: dataclasses.replace(  # type: ignore[call-arg]
            one, kind=kind, every=512, trained_len=512 if kind == "log_n" else None
        )
        for kind in KINDS
    }
    own = getattr(one, "kind", "")

    def draw(axes: Axes) -> None:
        for (kind, way), colour in zip(kinds.items(), shades(len(kinds)), strict=True):
            with torch.no_grad():
                factor = built(way)(place, place + 1)[0]
            wide = 2.2 if kind == own else 1.1
            axes.plot(place.numpy(), factor.numpy(), color=colour, linewidth=wide, label=kind)
        axes.axhline(1, color=BLUE, linewidth=0.8, linestyle=":")
        log_distance(axes)
        legend(axes)

    return [Panel("factor of a query, trained_len and every 512", draw, "place i")]
