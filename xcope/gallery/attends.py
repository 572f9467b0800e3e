"""Schemes that are attention itself: an example sentence, letter by letter, its gates set by hand.

Gates are learned; what they select in a trained model is not known here. By hand they are open at
spaces (CoPE: so that positions count words) or closed there (forgetting: so that a word forgets the
words before it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from xcope.gallery.example import GEOMETRY, built
from xcope.gallery.style import BLUE, FAINT, INK, RISING, Panel, scale
from xcope.ops.cope import positions
from xcope.positions import IndexBias, Rotation, Scheme
from xcope.positions.cope import CoPE

SENTENCE = "the cat sat on the mat"
LOGIT = 8.0
"""Of a gate that is set by hand: sigmoid(±8) is 0.9997 or 0.0003."""
FORGET = -1.5
"""log f at a space, where forgetting is set by hand: f = 0.22."""


def attend_panels(one: Scheme, beside: Sequence[Scheme] = ()) -> list[Panel]:
    """CoPE's positions, or the bias of forgetting.

    Args:
        one: of the attend slot.
        beside: the other parts of a combination, which change the logits that make the gates.
    """
    module = built(one)
    if isinstance(module, CoPE):
        return cope_panels(module, beside)
    return forgetting_panels(module)


def nothing_panels() -> list[Panel]:
    """Causal attention whose logits are all 0."""
    n = len(SENTENCE)
    attention = seen(n) / seen(n).sum(-1, keepdim=True)
    return [
        Panel(
            "attention if q·k is 0: only the causal mask",
            _table(attention, "log"),
            "key j",
            "query i",
        )
    ]


def cope_panels(module: CoPE, beside: Sequence[Scheme]) -> list[Panel]:
    """p_ij of the first head, and the row of the last query with its gates."""
    gates = word_gates(beside)
    p = positions(gates, module.max_pos)[0, 0].masked_fill(seen(len(SENTENCE)) == 0, torch.nan)

    def draw_row(axes: Axes) -> None:
        x = range(len(SENTENCE))
        last = p[-1].tolist()
        axes.bar(x, gates[0, 0, -1].tolist(), color=FAINT, label="gate")
        axes.plot(
            x,
            last,
            "o-",
            color=BLUE,
            markersize=4,
            linewidth=1,
            drawstyle="steps-mid",
            label="position",
        )
        for place, value in enumerate(last):
            text = f"{value:.1f}".removesuffix(".0")
            axes.annotate(
                text, (place, value), (0, 6), textcoords="offset points", fontsize=8, color=INK,
                ha="center",
            )  # fmt: skip
        axes.set_xticks(x, SENTENCE.replace(" ", "␣"))
        axes.set_ylim(0, max(last) + 0.8)
        axes.grid(visible=False, axis="x")
        axes.legend(frameon=False, fontsize=8)

    return [
        Panel("positions p_ij, gates by hand: open at spaces", _table(p), "key j", "query i"),
        Panel("of the last query: words counted back", draw_row, "key j", wide=1.25),
    ]


def word_gates(beside: Sequence[Scheme]) -> Tensor:
    """g_ij = sigmoid(s_ij), (1 h n n): q·k is ±`LOGIT` by hand; other schemes then act on it."""
    n, d, h = len(SENTENCE), GEOMETRY.dim_head, GEOMETRY.heads
    sign = torch.tensor([1.0 if letter == " " else -1.0 for letter in SENTENCE])
    q = torch.ones(1, h, n, d)  # every channel has its share of the product
    k = (sign[:, None] * LOGIT / d).expand(1, h, n, d)
    place = torch.arange(n)
    bias = torch.zeros(())
    for module in map(built, beside):
        if isinstance(module, Rotation):
            q, k = module.rotate(q, k, place, place)
        elif isinstance(module, IndexBias):
            bias = module.dense(place, place)
    return torch.sigmoid(q @ k.mT + bias) * seen(n)


def forgetting_panels(module: Any) -> list[Panel]:
    """b_ij with gates set by hand, and with those that random inputs get before training."""
    n = len(SENTENCE)
    spaces = torch.tensor([FORGET if letter == " " else 0.0 for letter in SENTENCE])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, n, GEOMETRY.dim, generator=generator)
    with torch.no_grad():
        fresh = module.remember(x)
        tables = [module.dense(gates, n)[0, 0] for gates in (spaces.expand(1, 1, n), fresh)]
    tables = [table.masked_fill(seen(n) == 0, torch.nan) for table in tables]
    return [
        Panel("bias b_ij, gates by hand: spaces forget", _table(tables[0]), "key j", "query i"),
        Panel("before training, random inputs, head 1", _table(tables[1]), "key j", "query i"),
    ]


def seen(n: int) -> Tensor:
    """1 where a query sees a key, (n n)."""
    return torch.ones(n, n).tril()


def _table(values: Tensor, norm: str = "linear") -> Callable[[Axes], None]:
    """Draws (n n) values with the sentence on both axes, and a scale beside it."""

    def draw(axes: Axes) -> None:
        shown = values.masked_fill(seen(len(values)) == 0, torch.nan).numpy()
        image = axes.imshow(shown, RISING, norm=norm, interpolation="nearest")
        ticks, letters = range(len(SENTENCE)), SENTENCE.replace(" ", "␣")
        axes.set_xticks(ticks, letters)
        axes.set_yticks(ticks, letters)
        axes.tick_params(length=0, labelsize=8)
        axes.grid(visible=False)
        scale(axes, image)

    return draw
