"""Schemes of the attend slot, and none: what they compute of a sentence, letter by letter.

What a trained model selects is not known here, so its numbers are set by hand: q·k is large where
the key is a space and small elsewhere, so that gates are open at spaces only and positions count
words; of a scheme that remembers its tokens, spaces leave something behind and letters nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import Tensor

from gallery.examples import GEOMETRY, built
from gallery.panel import RISING, Panel, scale
from xcope.plotting import BLUE, FAINT, INK
from xcope.positions import AttendInputs, AttendModule, IndexBias, Rotation, Scheme
from xcope.positions.decay import Decay
from xcope.positions.path import Path

SENTENCE = "the cat sat on the mat"
N = len(SENTENCE)
SPACES = torch.tensor([letter == " " for letter in SENTENCE])
SEEN = torch.ones(N, N).tril().bool()
LOGIT = 8.0
"""q·k by hand, below zero where the key is no space: a gate is sigmoid(±8), 0.9997 or 0.0003."""


@dataclass(frozen=True)
class ByHand:
    """What spaces and letters leave behind for later queries.

    Args:
        short: in a title.
        told: how a sentence about it ends.
        space: how many numbers a token leaves → those of a space.
        letter: the same of a letter.
    """

    short: str
    told: str
    space: Callable[[int], list[float]]
    letter: Callable[[int], list[float]] = lambda c: [0.0] * c


LEFT = ByHand(
    "−1.5 of spaces",
    "it is −1.5 where the token is a space and 0 elsewhere.",
    lambda c: [-1.5] * c,
)
"""As the logarithm of a forget gate it forgets 78 %."""
MIRRORED = ByHand(
    "spaces mirror",
    "spaces mirror along q itself, w = q and β = 2, and letters do nothing: what is seen over an "
    "odd number of spaces has its sign turned.",
    lambda c: [1.0] * (c - 1) + [2.0],
)


def _gates(logit: float) -> Callable[[int], list[float]]:
    """What a token leaves to `Decay` for gates with this logit: g, g' and 1."""
    return lambda c: [2 / (c - 1)] * (c // 2) + [logit] * (c // 2) + [1.0]


DECAYED = ByHand(
    "gates 0.22 at spaces",
    "gates are 0.22 where the key is a space, whose logarithm is −1.5, and 0.9997 elsewhere.",
    _gates(-1.25),
    _gates(LOGIT),
)


def by_hand(module: AttendModule) -> ByHand:
    """What the sentence's spaces leave behind, where it is set by hand."""
    if isinstance(module, Decay):
        return DECAYED
    return MIRRORED if isinstance(module, Path) else LEFT


def place_panels(one: Scheme) -> list[Panel]:
    """Of a rotation whose places come from tokens: the steps between two, and what is left of q·k.

    By hand spaces take a step of 1 and letters none.
    """
    module: Rotation = built(one)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        like = module.remember(torch.zeros(1, N, GEOMETRY.dim))
        by_hand = torch.where(SPACES, 1.0, 0.0)[:, None].expand_as(like)
        q = torch.randn(1, GEOMETRY.heads, 1, GEOMETRY.dim_head, generator=generator)
        q = torch.nn.functional.normalize(q, dim=-1).expand(-1, -1, N, -1)
        places = module.places(by_hand, None)
        turned_q, turned_k = module.rotate(q, q, places, places)
        left = (turned_q @ turned_k.mT).mean(1)
    return [
        _table("steps from key to query, by hand", module.trace(by_hand, None)["positions"][0]),
        _table("what is left of q·k where q = k", left),
    ]


def nothing_panels() -> list[Panel]:
    """Causal attention whose logits are all 0."""
    attention = SEEN[None] / SEEN.sum(-1, keepdim=True)
    return [_table("attention if q·k is 0: only the causal mask", attention, norm="log")]


def attend_panels(one: Scheme, beside: Sequence[Scheme] = ()) -> list[Panel]:
    """Positions if the scheme counts them, then what it adds to the logits, then its other maps.

    Args:
        one: of the attend slot.
        beside: the other parts of a combination, which act on the logits that it reads.
    """
    module: AttendModule = built(one)
    maps, added = read(module, beside)
    panels = []
    if "gates" in maps and "positions" in maps:
        gates, positions = maps.pop("gates"), maps.pop("positions")
        panels = [
            _table("positions p_ij, gates by hand: open at spaces", positions),
            _last_row("of the last query: words counted back", gates[0, -1], positions[0, -1]),
        ]
    if module.remembers:
        _, fresh = read(module, beside, fresh=True)
        panels += [
            _table(f"added to the logits,\nby hand: {by_hand(module).short}", added),
            _table("before training,\nrandom inputs, head 1", fresh),
        ]
    elif added[:, SEEN].any() or not (panels or maps):
        panels.append(_table("added to the logits before training", added))
    return [*panels, *(_table(f"{name}, q·k by hand", table) for name, table in maps.items())]


def read(
    module: AttendModule, beside: Sequence[Scheme] = (), *, fresh: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """What a scheme computes of the sentence.

    Args:
        module: of the scheme.
        beside: schemes that act on the logits before.
        fresh: whether tokens leave behind what it remembers of random inputs, and not `by_hand`.

    Returns:
        its maps (`AttendModule.trace`), and what it adds to the logits; each (h n n).
    """
    d, h = GEOMETRY.dim_head, GEOMETRY.heads
    q = torch.ones(1, h, N, d)  # every channel has its share of the product
    k = torch.where(SPACES, LOGIT / d, -LOGIT / d)[:, None].expand(1, h, N, d)
    place = torch.arange(N)
    bias = torch.zeros(())
    for other in map(built, beside):
        if isinstance(other, Rotation):
            q, k = other.rotate(q, k, place, place)
        elif isinstance(other, IndexBias):
            bias = other.dense(place, place)
    with torch.no_grad():
        remembered = None
        if module.remembers:
            generator = torch.Generator().manual_seed(0)
            remembered = module.remember(torch.randn(1, N, GEOMETRY.dim, generator=generator))
            if not fresh:
                like = remembered if remembered.ndim == 4 else remembered[..., None]
                space, letter = (
                    like.new_tensor(numbers(like.shape[-1]))
                    for numbers in (by_hand(module).space, by_hand(module).letter)
                )
                left = torch.where(SPACES[:, None], space, letter).expand_as(like)
                remembered = left.reshape(remembered.shape)
        gate_k = None if module.gate_keys is None else k
        inputs = AttendInputs(scale=1.0, gate_k=gate_k, remembered=remembered)
        given = (q, q @ k.mT + bias, SEEN.expand(1, h, N, N), inputs)
        maps, added = module.trace(*given), module(*given)
    return {name: table[0] for name, table in maps.items()}, added[0]


def _table(title: str, values: Tensor, norm: str = "linear") -> Panel:
    """The first head of values (h n n) where a key is seen, the sentence on both axes."""

    def draw(axes: Axes) -> None:
        shown = values[0].float().masked_fill(~SEEN, torch.nan).numpy()
        image = axes.imshow(shown, RISING, norm=norm, interpolation="nearest")
        letters = SENTENCE.replace(" ", "␣")
        axes.set_xticks(range(N), letters)
        axes.set_yticks(range(N), letters)
        axes.tick_params(length=0, labelsize=8)
        axes.grid(visible=False)
        # powers of ten would be formulas, which `save_png` writes as they stand
        scale(axes, image, "%g" if norm == "log" else None)

    return Panel(title, draw, "key j", "query i")


def _last_row(title: str, gates: Tensor, positions: Tensor) -> Panel:
    """The gates (n) of the last query as bars, its positions (n) as steps with their numbers."""
    last = positions.tolist()

    def draw(axes: Axes) -> None:
        axes.bar(range(N), gates.tolist(), color=FAINT, label="gate")
        axes.plot(
            range(N), last, "o-", color=BLUE, markersize=4, linewidth=1, drawstyle="steps-mid",
            label="position",
        )  # fmt: skip
        for place, value in enumerate(last):
            text = f"{value:.1f}".removesuffix(".0")
            axes.annotate(
                text, (place, value), (0, 6), textcoords="offset points", fontsize=8, color=INK,
                ha="center",
            )  # fmt: skip
        axes.set_xticks(range(N), SENTENCE.replace(" ", "␣"))
        axes.set_ylim(0, max(last) + 0.8)
        axes.grid(visible=False, axis="x")
        axes.legend(frameon=False, fontsize=8)

    return Panel(title, draw, "key j", wide=1.25)
