"""How schemes look in every picture: the same colour and dashes for the same scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#767676", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#332288")
"""Told apart by colour-blind readers too (Okabe and Ito 2008, its yellow and black replaced)."""
DASHES = ((), (6.0, 3.0), (2.0, 2.0), (7.0, 2.0, 2.0, 2.0))
"""Lengths of strokes and gaps, as SVG has them; none for a whole line."""
INK, FAINT = "#222222", "#D9D9D9"


@dataclass(frozen=True)
class Look:
    """Of one scheme."""

    colour: str
    dashes: tuple[float, ...]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each scheme; colours repeat after eight, with other dashes."""
    return {
        label: Look(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, label in enumerate(labels)
    }
