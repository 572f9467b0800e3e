"""Which schemes can stand at the same heads, as `xcope.positions.clash` decides."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

from xcope.describe import WHERE, reason
from xcope.markdown import code, table
from xcope.positions import Scheme, Slot, clash

YES, SAME_SLOT, SELF = "✓", "–", "·"


def singles(examples: Sequence[Scheme]) -> list[Scheme]:
    """Those that fill one slot, ordered by it: neither combinations nor ``none``."""
    slots = list(Slot)
    filling = [one for one in examples if one.slot is not None]
    return sorted(filling, key=lambda one: (slots.index(one.slot or Slot.INPUT), one.name))


def together(examples: Sequence[Scheme]) -> Iterator[str]:
    """The blocks of Markdown: slots, pairs of slots, pairs of schemes with the reasons."""
    chosen = singles(examples)
    yield (
        "At the same heads one scheme may stand from each slot: `position: [absolute, rotary, "
        "cope]`. Other layers or heads may have others: `{layers: [rotary, alibi]}`, "
        "`{heads: [cope, rotary]}`. What is added to the input stands before all of them: "
        "`[absolute, {layers: [rotary, alibi]}]`."
    )
    names = {slot: [code(one.name) for one in chosen if one.slot is slot] for slot in Slot}
    rows = [(slot.value, where, ", ".join(names[slot])) for slot, where in WHERE.items()]
    yield table(("slot", "where", "schemes"), rows)
    yield "Pairs of slots: ✓ all pairs of their schemes are allowed, (✓) some, – none."
    head = ("", *(slot.value for slot in Slot))
    yield table(head, [(a.value, *(_slots(a, b, chosen) for b in Slot)) for a in Slot])
    yield (
        "Pairs of schemes: ✓ allowed, – both fill one slot, a letter: the reason below. `none` "
        "stands beside no other, as `[rotary, none]` means layers with rotary and layers without; "
        "combinations go with what their parts go with."
    )
    yield from _pairs(chosen)


def _slots(a: Slot, b: Slot, chosen: Sequence[Scheme]) -> str:
    found = [
        clash(one, other) is None
        for one in chosen
        for other in chosen
        if one.slot is a and other.slot is b and one is not other
    ]
    return YES if found and all(found) else f"({YES})" if any(found) else SAME_SLOT


def _pairs(chosen: Sequence[Scheme]) -> Iterator[str]:
    letters: dict[str, str] = {}

    def cell(one: Scheme, other: Scheme) -> str:
        why = clash(one, other)
        if one is other:
            return SELF
        if why is None:
            return YES
        if one.slot is other.slot:
            return SAME_SLOT
        return letters.setdefault(reason(why), string.ascii_lowercase[len(letters)])

    numbered = list(enumerate(chosen, 1))
    rows = [
        (str(n), code(one.name), *(cell(one, other) for other in chosen)) for n, one in numbered
    ]
    yield table(("", "", *(str(n) for n, _ in numbered)), rows, "--c")
    yield "\n".join(f"- {letter}: {reason}" for reason, letter in letters.items())
