"""The look of every picture, and how it is written: as a PNG file or as SVG within a page.

A picture is a `matplotlib.figure.Figure` of its own. pyplot, which keeps all figures and looks for
a display, is never imported.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.text import Text

GREY, BLUE, ORANGE, GREEN = "#767676", "#0072B2", "#D55E00", "#009E73"
INK, SOFT, FAINT, EDGE = "#222222", "#5A6470", "#D9D9D9", "#999999"
"""Of text, of what explains, of the grid, and of the frame."""
COLOURS = (GREY, "#E69F00", BLUE, "#CC79A7", GREEN, "#56B4E9", ORANGE, "#332288")
"""Of series. Colour-blind readers can tell them apart (Okabe and Ito 2008, its yellow and black
replaced)."""
DARK = {
    INK: "#E8EAED", SOFT: "#A2ABB6", FAINT: "#343B44", EDGE: "#5B6470", "#FFFFFF": "#14171B",
    GREY: "#9AA3AD", "#E69F00": "#F2B134", BLUE: "#4DA8E0", "#CC79A7": "#E39BC4",
    GREEN: "#38C99C", "#56B4E9": "#8FD3FA", ORANGE: "#FF8A4C", "#332288": "#A79BFF",
}  # fmt: skip
"""Colour on white → what a dark page shows in its place, by its style."""
DASHES = ((), (6.0, 3.0), (2.0, 2.0), (7.0, 2.0, 2.0, 2.0))
"""Lengths of strokes and gaps in points; none for a solid line."""


@dataclass(frozen=True)
class Look:
    """Colour and dashes of one series, the same in every picture."""

    colour: str
    dashes: tuple[float, ...]

    def line(self, width: float = 2.0) -> dict[str, Any]:
        """Keywords of ``Axes.plot`` for a line of ``width`` points."""
        # matplotlib measures dashes in widths of their line
        dashes = (0, [length / width for length in self.dashes]) if self.dashes else "-"
        return {"color": self.colour, "linewidth": width, "linestyle": dashes}


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each series; colours repeat after eight, with other dashes."""
    return {
        label: Look(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, label in enumerate(labels)
    }


def plain(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw only the left and the bottom line of the frame, and a faint grid under the data.

    Args:
        grid: the axis whose ticks have grid lines.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def colour_bar(figure: Figure, image: ScalarMappable, **where: Any) -> None:
    """Draw what the colours of an image mean.

    Args:
        where: keywords of ``Figure.colorbar``: ``ax`` to take room from, or ``cax`` to fill.
    """
    bar = figure.colorbar(image, **where)
    bar.ax.tick_params(labelsize=7.5, colors=INK)
    bar.outline.set_visible(False)


def _writable(text: str) -> str:
    """Replace what neither a font nor a file can hold: control characters and half characters."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


@contextmanager
def _labels_as_they_stand(figure: Figure) -> Iterator[None]:
    """Write a figure whose labels may be anything.

    ``$`` is a dollar sign and begins no formula, and a letter that the fonts lack is drawn as a
    box, without a warning for each.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(_writable(text.get_text()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


PICTURES = (".png", ".svg", ".pdf")
"""Endings of the files that `save` writes."""


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure on white as what the name of its file says, see `PICTURES`."""
    with _labels_as_they_stand(figure), rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=dpi, facecolor="white", format=path.suffix.lower().lstrip("."))


def save_png(figure: Figure, path: Path | str, dpi: int = 130) -> None:
    """Write a figure as PNG on white."""
    with _labels_as_they_stand(figure):
        figure.savefig(path, dpi=dpi, facecolor="white")


def mark(artist: Artist, series: int, *titles: str) -> None:
    """Say what an artist shows, for `inline_svg`.

    Args:
        series: number of the series that it belongs to.
        titles: what a reader who points at it sees; one for each dot where it has dots.
    """
    # the gid is all of an artist that comes through to the SVG
    artist.set_gid(json.dumps([series, *titles]))


def inline_svg(figure: Figure, name: str) -> str:
    """Draw a figure as an ``<svg>`` element for an HTML page; the same figure gives the same text.

    Lengths are CSS pixels, 72 to an inch. Text stays text, in the font of the page, and where it
    is `INK` in the colour of the page, too. What was marked with `mark` lies in a group with
    ``data-series``, one for each series, on top of the rest. Nothing has an id, so any number of
    figures may stand in one page. All markers become circles.

    Args:
        name: what a screen reader says.
    """
    file = io.StringIO()
    with _labels_as_they_stand(figure), rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True)
    drawn = ElementTree.fromstring(file.getvalue())
    for path in drawn.iterfind(".//s:defs/s:path", _SVG):
        # a marker lies around 0, so the largest of its numbers is the radius
        radius = max(map(float, re.findall(r"[\d.]+", path.get("d", ""))))
        for use in drawn.iterfind(f".//s:use[@x:href='#{path.get('id')}']", _SVG):
            use.set("r", str(radius))
    box = {"viewBox": drawn.get("viewBox", ""), "role": "img", "aria-label": _writable(name)}
    svg, groups = ElementTree.Element("svg", box), dict[int, ElementTree.Element]()
    # each artist is a group with an id, and its markers are in one without
    for artist in drawn.iterfind(".//s:g[@id]", _SVG):
        gid = artist.get("id", "")
        series, *titles = json.loads(gid) if gid.startswith("[") else [None]
        kinds = ("s:path", "s:text", "s:g/s:use")
        shapes = [_shape(one) for kind in kinds for one in artist.iterfind(kind, _SVG)]
        for shape, title in zip(shapes, titles, strict=False):
            ElementTree.SubElement(shape, "title").text = _writable(title)
        home = svg
        if series is not None:
            home = groups.setdefault(series, ElementTree.Element("g", {"data-series": str(series)}))
        home.extend(one for one in shapes if one.get("fill") != "none" or one.get("stroke"))
    svg.extend(groups[series] for series in sorted(groups))
    return ElementTree.tostring(svg, encoding="unicode")


_SVG = {"s": "http://www.w3.org/2000/svg", "x": "http://www.w3.org/1999/xlink"}
_DEFAULTS = {
    "fill": "#000000",
    "stroke": "none",
    "stroke-width": "1",
    "stroke-dasharray": "none",
    "opacity": "1",
    "text-anchor": "start",
}
"""What is said of a shape, and what holds where nothing is said."""


def _shape(one: ElementTree.Element) -> ElementTree.Element:
    """A path, text or marker of matplotlib's with what is needed only, to a tenth of a pixel."""
    look = one.get("style", "")
    said = dict(re.findall(r"([a-z-]+): ([^;]+)", look))
    kept = {key: said[key] for key, usual in _DEFAULTS.items() if said.get(key, usual) != usual}
    kind = one.tag.rpartition("}")[2]
    if kind == "path":
        return ElementTree.Element(kind, {"d": _short(one.get("d", "")).replace("L ", "")} | kept)
    place = {key: _short(one.get(key, "")) for key in ("x", "y")}
    if kind == "use":
        circle = {"cx": place["x"], "cy": place["y"], "r": _short(one.get("r", ""))}
        return ElementTree.Element("circle", circle | kept)
    if kept.get("fill") == INK:
        del kept["fill"]
    # its size and weight may stand in the one word `font`
    if size := re.search(r"([\d.]+)px", look):
        kept["font-size"] = size[1]
    if re.search(r"\b(700|bold)\b", look):
        kept["font-weight"] = "bold"
    turn = _short(one.get("transform", ""))
    if turn and not turn.startswith("rotate(-0 "):
        kept["transform"] = turn
    text = ElementTree.Element(kind, place | kept)
    text.text = one.text
    return text


def _short(numbers: str) -> str:
    """Numbers with one decimal at most, and between them single spaces."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", numbers)
    return " ".join(rounded.replace(".0", "").split())
