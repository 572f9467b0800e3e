"""One picture for each scheme, and a contact sheet of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from gallery.beside import mask_panels, scale_panels, sink_panels
from gallery.distances import bias_panels, input_panels, rotation_panels
from gallery.examples import beginning, built, named, numbers
from gallery.panel import Panel, show, show_small
from gallery.sentence import attend_panels, nothing_panels, place_panels
from xcope.plotting import GREY, INK, save_png
from xcope.positions import Scheme, Slot

COLUMNS = 4
WIDTH, HEIGHT = 10.4, 4.0
"""Inches; wider ones would be too small to read in a page."""
PANELS = {
    Slot.INPUT: input_panels,
    Slot.ROTATION: rotation_panels,
    Slot.BIAS: bias_panels,
    Slot.MASK: mask_panels,
    Slot.SINK: sink_panels,
    Slot.SCALE: scale_panels,
}


def write_pictures(out: Path, root: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write the pictures of these schemes, or of all, and then the contact sheet; the files.

    Raises:
        FlagError: an unknown name; a scheme without a YAML file.
    """
    examples = named(names, root / "configs")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for one in examples:
        draw(one, out / f"{one.name}.png")
        files.append(out / f"{one.name}.png")
    if not names:
        contact_sheet(examples, out / "contact-sheet.png")
        files.append(out / "contact-sheet.png")
    return files


def panels(one: Scheme) -> list[Panel]:
    """The diagrams of a scheme; of a combination the first one of each part."""
    parts = one.parts()
    if not parts:
        return nothing_panels()
    found = []
    for part in parts:
        if part.slot is Slot.ATTEND:
            found.append(attend_panels(part, [other for other in parts if other is not part]))
        elif part.slot is Slot.ROTATION and built(part).remembers:
            found.append(place_panels(part))
        elif part.slot is not None:
            found.append(PANELS[part.slot](part))
    return found[0] if len(parts) == 1 else [first for first, *_ in found]


def draw(one: Scheme, path: Path) -> None:
    """Write the picture of a scheme."""
    drawn = panels(one)
    columns = len(drawn) if len(drawn) <= 3 else 2
    lines = math.ceil(len(drawn) / columns)
    wide = [panel.wide for panel in drawn[:columns]]
    size = (min(4.3 * sum(wide) + 0.4, WIDTH), HEIGHT * lines)
    figure = Figure(figsize=size, layout="constrained")
    cells = figure.subplots(lines, columns, squeeze=False, width_ratios=wide).ravel()
    for panel, axes in zip(drawn, cells, strict=False):
        show(panel, axes)
    for axes in cells[len(drawn) :]:
        axes.remove()
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
