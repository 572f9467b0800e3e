"""What stands under a picture."""

from __future__ import annotations

from collections.abc import Iterator

from xcope.positions import Scheme, Slot

NOTHING = "Causal attention of a query to all keys before it, if q·k is the same for all."
CAPTIONS = {
    Slot.INPUT: (
        "Inner products of the vectors that are added, against the distance of two places: the "
        "mean over all pairs, over its value at distance 0.",
        "Beside it the vectors themselves.",
    ),
    Slot.ROTATION: (
        "What is left at a distance of q·k between equal unit vectors q = k, the mean over random "
        "ones, with plain rotary beside it (where q and k become wider, over the value at distance "
        "0). Dips and peaks come from pairs of channels that turn by half and whole circles.",
        "To the right what the single channels have of it, over that at distance 0, where q and k "
        "keep their width.",
    ),
    Slot.BIAS: (
        "The bias of each of eight heads against the distance of query and key. Learned biases are "
        "drawn as they are before training.",
        "Beside it the share of attention that a query at place 4096 gives to the keys up to a "
        "distance, if q·k is the same for all.",
    ),
    Slot.ATTEND: (
        "Letters of a sentence: each row is a query, each column a key. Gates are learned; those "
        "that the picture calls 'by hand' are set to show what they do: CoPE's are open at "
        "spaces and closed elsewhere, forgetting's partly closed at spaces and open elsewhere.",
        "",
    ),
}
"""Of the first diagram, and of the others."""


def caption(one: Scheme) -> Iterator[str]:
    """Paragraphs that say what `xcope.gallery.pictures.panels` draws."""
    parts = [part for part in one.parts() if part.slot is not None]
    for part in parts:
        if part.slot is not None:
            first, others = CAPTIONS[part.slot]
            yield first if len(parts) > 1 else f"{first} {others}".rstrip()
    if len(parts) > 1 and {Slot.ROTATION, Slot.BIAS} & {part.slot for part in parts}:
        yield "The gates are made from logits on which the other part has acted; head 1 is drawn."
    if not parts:
        yield NOTHING
