"""report.html in a real browser: it loads in peace, sorts, has every picture, fits a phone."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from compare_runs import outcome

from xcope.compare import Outcome, summarise
from xcope.compare.report.findings import Findings
from xcope.compare.report.page import breakable, page
from xcope.compare.run.pool import Circumstances
from xcope.config import load_config
from xcope.plotting import COLOURS, DARK

COMMAND = "python scripts/compare.py 'a & b.yaml' --out <here>"
SPLITS = ("in_distribution", "dense", "longer_2x", "longer_4x")
CURVE = {"metric": "error", "edges": [0, 4, 8], "values": [0.1, 0.3]}
LINE = "[data-series] path[fill=none]"
ERRORS = {"none": 0.4, "rotary": 0.2, "cope(max_pos=8, soft_onehot=True)": 0.05, "alibi": 0.05}


def run_of(folder, scheme: str, seed: int, number: int) -> Outcome:
    """A made-up run with a learning curve; ``number`` moves its costs."""
    spread = 0.03 if scheme == "alibi" else 0.01
    errors = {split: ERRORS[scheme] + spread * seed + 0.02 * i for i, split in enumerate(SPLITS)}
    errors["dense"] = 0.5 - ERRORS[scheme]  # another order
    name = scheme.partition("(")[0]
    options = {"instructions": 8, "stretch": 4}
    made = outcome(
        name, seed, error=errors, task="flip_flop", options=options, folder=folder,
        by_position={"in_distribution": CURVE, "longer_4x": CURVE}, params=25_000 + number,
        timing={"peak_bytes": 10**7 * (1 + number), "device": "cpu"}, seconds=9.5 + number,
    )  # fmt: skip
    run = replace(made.run, scheme=scheme)
    run.folder.mkdir(parents=True)
    points = [{"step": step, "loss": 2 / step, "seconds": step} for step in range(1, 9)]
    text = "".join(json.dumps(point) + "\n" for point in points)
    (run.folder / "metrics.jsonl").write_text(text)
    return replace(made, run=run)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of 4 schemes × 3 seeds; one run of alibi failed."""
    folder = tmp_path_factory.mktemp("page")
    made = [
        run_of(folder, scheme, seed, number)
        for number, scheme in enumerate(ERRORS)
        for seed in range(3)
    ]
    made[-1] = Outcome(made[-1].run, reason="the loss is <nan> & gone")
    (folder / "sweep.yaml").write_text(
        "extends: [models/tiny.yaml, tasks/flip_flop.yaml]\n"
        "sweep: {model.position: [none, rotary, cope, alibi], train.seed: [0, 1, 2]}\n"
    )
    config = load_config(folder / "sweep.yaml", sweep=True)
    how = Circumstances(COMMAND, "cpu", 2, 1)
    found = Findings(config, made, summarise(made, "rotary"), [], how)
    (folder / "report.html").write_text(page(found), encoding="utf-8")
    return folder / "report.html"


def test_every_picture_is_there_with_a_line_or_bar_for_every_scheme(report, open_page):
    opened = open_page(report)
    kinds = ["split"] * 4 + ["length", "learning"] + ["position"] * 2
    charts = opened.locator("figure.chart")
    assert [c.get_attribute("class").split()[1] for c in charts.all()] == kinds
    for chart in charts.all():
        svg = chart.locator("svg")
        assert svg.bounding_box()["width"] > 200
        assert svg.bounding_box()["height"] > 100
        assert len(svg.get_attribute("aria-label")) > 10
        assert svg.locator("[data-series]").count() == len(ERRORS)
    for kind in ("length", "learning", "position"):
        assert opened.locator(f".{kind} {LINE}").count() % len(ERRORS) == 0
        assert opened.locator(f".{kind} {LINE}").count() > 0
    assert opened.locator(".split circle").count() == 4 * 11  # a dot for each seed with a result
    assert opened.locator(".length circle").count() == 3 * len(ERRORS)


def test_every_chart_is_marked_up_and_says_its_numbers_where_it_is_pointed_at(report):
    drawn = re.findall(r'<svg [^>]*role="img".*?</svg>', report.read_text(), re.DOTALL)
    charts = [ElementTree.fromstring(svg) for svg in drawn]
    assert len(charts) == 8
    for chart in charts:
        groups = chart.findall("g[@data-series]")
        assert [group.get("data-series") for group in groups] == ["0", "1", "2", "3"]
    said = [[title.text for title in chart.iter("title")] for chart in charts]
    for part in (
        "none: 41.0 ± 1.0 [40.0, 42.0]",
        "seed 2: 42%",
        "alibi: 6.5 ± 2.1 (2 of 3) [5.0, 8.0]",
    ):
        assert part in said[0]
    assert "rotary: 25% at 32" in said[4]
    for names in said[5:]:
        assert names == list(ERRORS)


def column(opened, number: int, table: int = 0) -> list[str]:
    cells = opened.locator("table.sortable").nth(table).locator(f"tbody tr > :nth-child({number})")
    return [text.split("\n")[0] for text in cells.all_inner_texts()]


def test_columns_sort_up_and_down_and_as_numbers(report, open_page):
    opened = open_page(report)
    headings = opened.locator("table.sortable").first.locator("thead button")
    schemes = column(opened, 1)
    assert schemes == list(ERRORS)

    headings.nth(1).click()
    values = [float(text.split(" ")[0]) for text in column(opened, 2)]
    assert values == sorted(values)
    assert column(opened, 1)[-2:] == ["rotary", "none"]
    heading = opened.locator("table.sortable").first.locator("thead th").nth(1)
    assert heading.get_attribute("aria-sort") == "ascending"

    headings.nth(1).click()
    assert [float(text.split(" ")[0]) for text in column(opened, 2)] == values[::-1]
    assert heading.get_attribute("aria-sort") == "descending"

    headings.nth(6).click()  # 9.5, 10.5, 11.5, 12.5 seconds, which as text would begin with 10
    assert heading.get_attribute("aria-sort") is None
    assert column(opened, 1) == list(ERRORS)
    headings.nth(0).click()
    assert column(opened, 1) == sorted(ERRORS)


def test_what_is_missing_sorts_last_both_ways(open_page, report, tmp_path):
    text = report.read_text()
    before, row, after = text.partition("cope(<wbr>")
    after = re.sub(r'data-value="[\d.]+"', 'data-value=""', after, count=1)
    (tmp_path / "gap.html").write_text(before + row + after)
    opened = open_page(tmp_path / "gap.html")
    for first in ("alibi", "none"):
        opened.locator("table.sortable").first.locator("thead button").nth(1).click()
        assert column(opened, 1)[0] == first
        assert column(opened, 1)[-1].startswith("cope(")


def test_best_tied_and_the_baseline_are_marked_in_words(report, open_page):
    opened = open_page(report)
    row = opened.locator("table.sortable").first.locator("tbody tr")
    best = row.filter(has_text="cope(").locator("td").first
    assert "best" in best.get_attribute("class").split()
    assert best.locator(".mark").inner_text() == "best"
    tied = row.filter(has_text="alibi").locator("td").first
    assert tied.locator(".mark").inner_text() == "tied"
    assert "(2 of 3)" in tied.inner_text()
    assert row.nth(1).locator("th .below").inner_text() == "baseline"
    verdicts = opened.locator("table.sortable").nth(1).locator("tbody tr")
    assert verdicts.count() == 3
    assert verdicts.first.locator("td").first.locator(".mark").inner_text() == "worse"


def test_a_row_for_each_run_with_config_and_difference_to_the_one_before(report, open_page):
    opened = open_page(report)
    runs = opened.locator("details.run")
    assert runs.count() == 12
    assert "the first run" in runs.nth(0).inner_text()
    assert runs.nth(1).locator(".diff > span").all_inner_texts() == ["train.seed 0 → 1"]
    changes = runs.nth(3).locator(".diff > span").all_inner_texts()
    assert changes == ["model.position none → rotary", "train.seed 2 → 0"]
    config = runs.nth(3).locator("pre")
    assert not config.is_visible()
    runs.nth(3).locator("summary").click()
    assert config.is_visible()
    assert "position: rotary" in config.inner_text()
    assert "the loss is <nan> & gone" in runs.nth(11).inner_text()


def test_failures_and_how_to_reproduce_are_told(report, open_page):
    opened = open_page(report)
    assert "the loss is <nan> & gone" in opened.locator("#failed").inner_text()
    assert "1 run failed" in opened.locator("header").inner_text()
    box = opened.locator("#reproduce .box")
    assert box.locator(".command").inner_text() == COMMAND
    for part in ("Python 3", "torch 2", "x-transformers 2", "device cpu", "2 runs at a time"):
        assert part in box.inner_text()
    box.locator("summary").click()
    assert "model.position: [none, rotary, cope, alibi]" in box.inner_text()


def test_schemes_can_be_seen_alone(report, open_page):
    opened = open_page(report)
    button = opened.locator(".legend button", has_text="rotary")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    dim = opened.locator(".learning [data-series].dim")
    assert [d.get_attribute("data-series") for d in dim.all()] == ["0", "2", "3"]
    button.click()
    assert dim.count() == 0


@pytest.mark.parametrize("width", [320, 390, 768])
def test_on_a_phone_nothing_but_tables_is_wider_than_the_screen(report, open_page, width):
    opened = open_page(report, viewport={"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    for chart in opened.locator("figure.chart svg").all():
        assert chart.bounding_box()["width"] > 0.7 * min(width, 400)


def test_on_paper_all_explanations_are_open_and_nothing_is_cut(report, open_page):
    opened = open_page(report, viewport={"width": 760, "height": 1000})
    opened.emulate_media(media="print")
    opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.locator(".notes details:not([open])").count() == 0
    assert opened.locator("details.run[open]").count() == 0
    assert not opened.locator("nav").is_visible()
    assert opened.evaluate("document.documentElement.scrollWidth") == 760
    assert len(opened.pdf()) > 10_000


def test_the_page_of_a_real_comparison_loads(made, open_page):
    opened = open_page(made.out / "report.html")
    assert opened.title() == "Positional schemes on selective copy"
    assert opened.locator("details.run").count() == 4
    assert opened.locator(f".learning {LINE}").count() == 2
    assert opened.locator(f".position {LINE}").count() > 0


def test_it_asks_for_nothing_from_elsewhere(report):
    """Also what a browser would ask for only later."""
    text = report.read_text()
    files = r"(?:summary|results|timings)\.csv|config\.yaml|report\.md"
    assert re.findall(rf'(?:src|href)="(?!#|data:,|(?:{files})")', text) == []
    assert re.findall(r"https?://|url\(|@import", text) == []


CONTRASTS = """(selectors) => {
  const lum = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
    }
  };
  const found = [];
  for (const [selector, property] of selectors) {
    for (const one of document.querySelectorAll(selector)) {
      const colour = getComputedStyle(one)[property];
      if (colour === "none" || !one.getClientRects().length) continue;
      const [a, b] = [lum(colour), lum(ground(one))].sort((x, y) => y - x);
      found.push([selector, colour, (a + 0.05) / (b + 0.05)]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(report, open_page, scheme):
    opened = open_page(report, color_scheme=scheme)
    light = (
        opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert light == (scheme == "light")
    texts = ["p", "li", "th", "td span", "h1", "h2", "h4", "a", "summary", "button", "pre", "b",
             "code", "del", "ins", ".diff"]  # fmt: skip
    looked = [[one, "color"] for one in texts] + [[".chart text", "fill"]]
    found = opened.evaluate(CONTRASTS, looked)
    assert len(found) > 200
    assert [one for one in found if one[2] < 4.5] == []
    lines = opened.evaluate(CONTRASTS, [[".chart [data-series] path[fill=none]", "stroke"]])
    assert len(lines) >= 4
    # in the light, orange and sky blue are as Okabe and Ito have them: 2.1
    assert [one for one in lines if one[2] < (2 if light else 4.5)] == []


def test_every_colour_of_a_chart_has_one_for_the_dark(report):
    charts = re.findall(r'<svg [^>]*role="img".*?</svg>', report.read_text(), re.DOTALL)
    used = set(re.findall(r'(?:fill|stroke)="(#\w+)"', "".join(charts)))
    assert len(used) > 4
    assert {colour.upper() for colour in used} <= {colour.upper() for colour in DARK}
    assert {*COLOURS} <= {*DARK}


def test_labels_break_after_punctuation_and_are_escaped():
    assert breakable("a(b=<1>, c)") == "a(<wbr>b=<wbr>&lt;1&gt;,<wbr> c)"
