"""How pictures are written: PNG files, and SVG within a page."""

from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from xcope.plotting import COLOURS, DASHES, INK, inline_svg, looks, mark, plain, save_png


def figure(title: str = "title") -> Figure:
    """A dashed line with two dots, and a band of another series below it."""
    made = Figure(figsize=(4, 3), layout="constrained")
    axes = made.subplots()
    (look,) = looks(["a"]).values()
    (line,) = axes.plot([1, 2], [0.5, 0.25], **look.line())
    (dots,) = axes.plot([1, 2], [0.5, 0.25], "o", markersize=8)
    (band,) = axes.fill([1, 2, 2], [0, 0, 0.1], color=COLOURS[1], alpha=0.11)
    mark(line, 7, "a line")
    mark(dots, 7, "<first>", "second")
    mark(band, 3)
    axes.set_title(title, color=INK, fontsize=11)
    plain(axes)
    return made


def test_a_figure_becomes_one_element_of_a_page():
    drawn = inline_svg(figure(), "what it <shows>")
    svg = ElementTree.fromstring(drawn)
    assert (svg.tag, svg.get("role"), svg.get("aria-label")) == ("svg", "img", "what it <shows>")
    assert svg.get("viewBox") == "0 0 288 216"
    for foreign in ("http", "<?xml", "<!", " id=", "url(", "style=", "font-family", "metadata"):
        assert foreign not in drawn
    assert inline_svg(figure(), "what it <shows>") == drawn


def test_a_series_is_one_group_and_says_what_is_pointed_at():
    svg = ElementTree.fromstring(inline_svg(figure(), "name"))
    groups = svg.findall("g")
    assert [group.get("data-series") for group in groups] == ["3", "7"]
    assert [one.tag for one in groups[0]] == ["path"]
    assert [one.tag for one in groups[1]] == ["path", "circle", "circle"]
    assert [one.findtext("title") for one in groups[1]] == ["a line", "<first>", "second"]
    assert {one.get("r") for one in groups[1].findall("circle")} == {"4"}


def test_text_stays_text_in_the_font_and_colour_of_the_page():
    svg = ElementTree.fromstring(inline_svg(figure("gr\u00f6\u00dfer"), "name"))
    (title,) = (text for text in svg.iter("text") if text.text == "gr\u00f6\u00dfer")
    assert title.get("fill") is None
    assert title.get("font-size") == "11"


def test_lines_have_the_dashes_of_their_look_whatever_their_width():
    style = list(looks([str(i) for i in range(len(COLOURS) + 1)]).values())
    for width in (1.0, 3.0):
        axes = (made := Figure()).subplots()
        (line,) = axes.plot([0, 1], [0, 1], **style[-1].line(width))
        mark(line, 0)
        (drawn,) = ElementTree.fromstring(inline_svg(made, "name")).findall("g/path")
        lengths = [float(length) for length in drawn.get("stroke-dasharray").split(",")]
        assert lengths == pytest.approx(DASHES[1])


def test_a_label_may_hold_what_no_file_can_and_what_would_be_a_formula(tmp_path):
    label = "$x_0 \x00\x1b\ud800 & <b> \u05e2\u05d1"
    svg = ElementTree.fromstring(inline_svg(figure(label), label))
    assert "$x_0 \ufffd\ufffd\ufffd & <b> \u05e2\u05d1" in [one.text for one in svg.iter("text")]
    save_png(figure(label), tmp_path / "a.png", dpi=50)
    assert imread(tmp_path / "a.png").shape == (150, 200, 4)
