"""Labels of every kind in every table, picture and page that a comparison writes."""

import csv
import io
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from compare_runs import outcome
from rich.console import Console

from xcope.compare import summarise, terminal_table
from xcope.compare.report.charts import charts
from xcope.compare.report.findings import Findings
from xcope.compare.report.write import write
from xcope.compare.run.plan import folder_names
from xcope.compare.run.pool import Circumstances
from xcope.markdown import escape

LABELS = {
    "dollars": "$x$ costs $5_0$ \\frac",
    "underscores": "_a_ __b__",
    "html": "<b>&amp;</b></script><script>alert(1)</script>",
    "pipe": "a|b`c``|*d*",
    "rich markup": "[red]x[/red] [/] \\",
    "emoji": "🧪👩‍🔬 e\u0301",
    "right to left": "עברית العربية",
    "several lines": "one\ntwo\r\nthree\tfour",
    "long": "x" * 300,
}
each_label = pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)


def findings(label, tmp_path):
    """Two schemes on a task with one option that is called so; one seed of them failed."""
    made = []
    for scheme in ("none", "rotary"):
        swept = {"task.glob": label, "train.note": label}
        made += [
            outcome(
                scheme,
                s,
                error={"in_distribution": 0.1 + s, "sparse": 0.2},
                swept=swept,
                folder=tmp_path,
            )
            for s in (0, 1)
        ]
    failed = outcome("alibi", swept={"task.glob": label, "train.note": label}, folder=tmp_path)
    made.append(replace(failed, reason=f"could not read {label}"))
    config = made[0].run.config.model_copy(update={"sweep": {"task.glob": [label]}})
    how = Circumstances(f"python x '{label}'", "cpu", 1, 1)
    return Findings(config, made, summarise(made), (), how)


class Read(HTMLParser):
    """The text of a page, its attributes' values and its scripts."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.scripts, self.tag = [], 0, ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


@each_label
def test_every_file_shows_the_label_as_it_is(label, tmp_path):
    found = findings(label, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, found)
    variant = found.outcomes[0].run.variant
    with (tmp_path / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["scheme"] for row in rows} == {"none", "rotary", "alibi"}
    assert {row[key] for row in rows for key in ("train.note", "task.glob")} == {label}
    assert {row["baseline"] for row in rows} == {"", variant}
    page = Read((tmp_path / "report.html").read_text(encoding="utf-8"))
    plain = Read("".join(["<script></script>"]))
    assert page.scripts == plain.scripts
    assert variant.replace("\r\n", "\n") in "".join(page.texts).replace("\r\n", "\n")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    tables = [line for line in report.splitlines() if line.startswith("|")]
    # a cell's own bars are escaped, so a table has as many columns in each line as in its head
    counts = [len(re.findall(r"(?<!\\)\|", line.replace(r"\\", ""))) for line in tables]
    assert len(set(counts[:4])) == 1
    assert escape(variant) in report


@each_label
def test_the_terminal_shows_the_label_as_it_is(label, tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, width=2000, highlight=False)
    (summary, *_) = findings(label, tmp_path).summaries
    console.print(terminal_table(summary))
    for line in summary.rows[0].label.splitlines():
        assert line.expandtabs().split()[0] in shown.getvalue()
    assert "[red]x[/red]" in shown.getvalue() or "[red]" not in label


@each_label
def test_a_folder_named_after_a_label_is_a_plain_name(label):
    (name,) = folder_names([label])
    assert re.fullmatch(r"[A-Za-z0-9_.+=-]{1,150}", name)


@each_label
def test_svg_text_is_escaped(label, tmp_path):
    errors = {"in_distribution": 0.1, "longer_2x": 0.2}
    swept, options = {"train.note": label}, {"instructions": 8, "stretch": 2}
    rest = {"swept": swept, "task": "flip_flop", "options": options, "folder": tmp_path}
    (summary,) = summarise([outcome("none", s, error=errors, **rest) for s in (0, 1)])
    drawn = {chart.kind: chart.svg for chart in charts(replace_label(summary, label))}
    for kind in ("split", "length"):
        read = Read(drawn[kind])
        assert read.scripts == 0
        assert label.replace("\r\n", "\n") in "".join(read.texts).replace("\r\n", "\n")


def replace_label(summary, label):
    """The summary with its first row called so."""
    return replace(summary, rows=(replace(summary.rows[0], label=label), *summary.rows[1:]))


def test_ordinary_labels_stay_as_they_are_in_markdown():
    for label in ("cope(max_pos=32)", "rotary, lr=0.001", "counting(variables=3)", "none+cope"):
        assert escape(label) == label
