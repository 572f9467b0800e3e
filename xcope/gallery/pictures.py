"""One picture for each scheme, and a contact sheet of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from xcope.gallery.attends import attend_panels, nothing_panels
from xcope.gallery.biases import bias_panels
from xcope.gallery.example import beginning, numbers
from xcope.gallery.inputs import input_panels
from xcope.gallery.rotations import rotation_panels
from xcope.gallery.style import GREY, INK, Panel, show, show_small
from xcope.plotting import save_png
from xcope.positions import Scheme, Slot

COLUMNS = 4
WIDTH, HEIGHT = 10.4, 4.0
"""Inches; wider ones would be too small to read in a page."""
PANELS = {
    Slot.INPUT: input_panels,
    Slot.ROTATION: rotation_panels,
    Slot.BIAS: bias_panels,
    Slot.ATTEND: attend_panels,
}


def panels(one: Scheme) -> list[Panel]:
    """The diagrams of a scheme; of a combination the first one of each part."""
    parts = one.parts()
    if not parts:
        return nothing_panels()
    if len(parts) == 1:
        (part,) = parts
        return PANELS[part.slot](part) if part.slot is not None else []
    first = []
    for part in parts:
        others = [other for other in parts if other is not part]
        if part.slot is Slot.ATTEND:
            first.append(attend_panels(part, others)[0])
        elif part.slot is not None:
            first.append(PANELS[part.slot](part)[0])
    return first


def draw(one: Scheme, path: Path) -> None:
    """Write the picture of a scheme."""
    drawn = panels(one)
    wide = [panel.wide for panel in drawn]
    figure = Figure(figsize=(min(4.3 * sum(wide) + 0.4, WIDTH), HEIGHT), layout="constrained")
    row = figure.subplots(1, len(drawn), squeeze=False, width_ratios=wide)[0]
    for panel, axes in zip(drawn, row, strict=True):
        show(panel, axes)
    figure.suptitle(title(one), fontsize=12, color=INK, x=0.01, ha="left")
    if numbers(one):
        figure.supxlabel(numbers(one), fontsize=8.5, color=GREY, x=0.01, ha="left")
    save_png(figure, path)


def title(one: Scheme) -> str:
    """The scheme's, and whether what is drawn has still to be learned."""
    # what is drawn of the attend slot is set by hand, and says so
    parts = [part for part in one.parts() if part.slot is not Slot.ATTEND]
    notes = [note for note in dict.fromkeys(map(beginning, parts)) if note]
    return ", ".join([one.title, *notes])


def contact_sheet(examples: Sequence[Scheme], path: Path) -> None:
    """Write the first diagrams of all schemes in one picture."""
    lines = math.ceil(len(examples) / COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.35 * lines), layout="constrained")
    cells = figure.subfigures(lines, COLUMNS, squeeze=False).ravel()
    for cell, one in zip(cells, examples, strict=False):
        drawn = panels(one)[: max(len(one.parts()), 1)]
        row = cell.subplots(1, len(drawn), squeeze=False)[0]
        for panel, axes in zip(drawn, row, strict=True):
            show_small(panel, axes)
        cell.suptitle(one.name, fontsize=10, color=INK, fontweight="bold")
    save_png(figure, path)
