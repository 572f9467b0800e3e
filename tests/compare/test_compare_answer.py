"""The answer: a sentence for each split, in every medium, which says no more than the test does."""

import csv
import io
import re
from dataclasses import replace

import pytest
from compare_runs import outcome, outcomes
from rich.console import Console

from xcope.compare import Outcome, plan, summarise, terminal_table
from xcope.compare.report.answer import about_answers, answers, terminal_answer
from xcope.compare.report.charts import charts
from xcope.compare.report.findings import Findings
from xcope.compare.report.tables import baseline, differences, results
from xcope.compare.report.write import write, write_results, write_summary, write_timings
from xcope.compare.run.pool import Circumstances
from xcope.config import load_config
from xcope.training.metrics import METRICS, Metric, register


def said(made, baseline=None) -> str:
    """The sentence on the first split."""
    (summary,) = summarise(made, baseline)
    return answers(summary)[0].text


def both(error):
    """The error on two splits of the task."""
    return None if error is None else {"in_distribution": error, "sparse": error}


def swept(errors, key="train.lr"):
    """Scheme → value of a key → error of each seed."""
    return [
        outcome(scheme, seed, error=both(error), swept={key: value})
        for scheme, values in errors.items()
        for value, seeds in values.items()
        for seed, error in enumerate(seeds)
    ]


THREE = {"none": [0.5] * 3, "rotary": [0.2, 0.21, 0.22], "cope": [0.2, 0.22, 0.21]}


@pytest.mark.parametrize(
    ("errors", "baseline", "expected"),
    [
        (
            {"none": [0.50, 0.52, 0.51], "cope": [0.10, 0.11, 0.12], "rotary": [0.1, 0.13, 0.12]},
            None,
            "Near: best: cope (11.0 ± 1.0); not distinguishable from it: rotary (11.7 ± 1.5); "
            "worse: none by 40.0 (37.5 to 42.5).",
        ),
        (
            {"none": [0.50, 0.52, 0.51], "cope": [0.10, 0.11, 0.12], "t5": [0.3, 0.31, 0.32]},
            "t5",
            "Near: best: cope (11.0 ± 1.0); worse: t5 by 20.0 (20.0 to 20.0), none by 40.0 (37.5 "
            "to 42.5). Against t5, worse: none.",
        ),
        (THREE | {"none": [0.3, 0.1, 0.5]}, None,
         "Near: not distinguishable: rotary (21.0 ± 1.0), cope (21.0 ± 1.0), none (30.0 ± 20.0)."),
        ({"cope": [0.1, 0.2, 0.3]}, None,
         "Near: cope (20.0 ± 10.0), with nothing to compare it with."),
        ({"cope": [0.1], "none": [0.4]}, None, "Near: lowest is cope (10.0), then none (40.0)."),
        ({"none": [0.4, 0.4], "cope": [0.1, 0.1]}, "none",
         "Near: lowest is cope (10.0 ± 0.0), then none (40.0 ± 0.0)."),
        ({"none": [0.4] * 3, "cope": [0.1] * 3, "t5": [None] * 3, "fire": [0.1, None, None]}, None,
         "Near: best: cope (10.0 ± 0.0); worse: none by 30.0 (30.0 to 30.0); too few seeds to "
         "tell: fire (10.0 (1 of 3)); without a result: t5."),
        ({"cope": [None] * 3, "none": [None] * 3}, None, "Near: no run has a result."),
        ({"cope": [float("nan")] * 3, "none": [0.1] * 3}, None,
         "Near: none (10.0 ± 0.0), with nothing to compare it with; without a result: cope."),
    ],
)  # fmt: skip
def test_the_sentence_of_a_split(errors, baseline, expected):
    assert said(outcomes(errors), baseline) == expected


def test_where_higher_is_better_the_sentence_turns_round():
    one = register(Metric("grade", lambda answers: answers.wrong, share=True, better="higher"))
    try:
        few = outcomes({"none": [0.4], "cope": [0.7]}, metric="grade")
        assert said(few) == "Near: highest is cope (70.000), then none (40.000)."
        three = outcomes({"none": [0.4, 0.41, 0.42], "cope": [0.7] * 3}, metric="grade")
        assert said(three).startswith("Near: best: cope (70.000 ± 0.000); worse: none by 29.000 (")
    finally:
        del METRICS[one.name]


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_one_seed_or_two_no_word_no_colour_and_no_bold_tells_schemes_apart(seeds, tmp_path):
    errors = {"none": [both(0.9)] * seeds, "cope": [both(0.0)] * seeds}
    found = findings(outcomes(errors, folder=tmp_path))
    write(tmp_path, found)
    (summary,) = found.summaries
    cells = [cell for rows in (results(summary, ()), differences(summary)) for row in rows[1]
             for cell in row]  # fmt: skip
    assert {cell.mark for cell in cells} <= {"", "too few seeds"}
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'<td[^>]*class="(best|tied|better|worse)"', page)
    assert 'font-weight="bold"' not in page.split("</style>")[1]
    text = (tmp_path / "report.md").read_text()
    assert "**" not in text.replace("**Note.**", "")
    assert not re.search(r"<br>(better|worse)|p 0\.5", text)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["standing"], row["verdict"]) for row in rows} == {("", ""), ("", "too few seeds")}
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=True)
    console.print(terminal_answer(summary), terminal_table(summary))
    assert not [
        line for line in shown.getvalue().splitlines() if "\x1b[1m" in line and "0.0" in line
    ]
    assert "too few to tell schemes apart" in " ".join(shown.getvalue().split())


def findings(made, **sweep) -> Findings:
    config = made[0].run.config.model_copy(update={"sweep": sweep or {"train.seed": [0]}})
    return Findings(config, made, summarise(made), (), Circumstances("again", "cpu", 1, 1))


LR = {
    "none": {"0.1": [0.5, 0.5, 0.51], "0.2": [0.4, 0.4, 0.41], "0.3": [0.6, 0.6, 0.61]},
    "cope": {"0.1": [0.1, 0.1, 0.11], "0.2": [0.2, 0.2, 0.21], "0.3": [0.3, 0.0, None]},
}


def test_where_a_rate_is_swept_the_best_of_each_scheme_is_spoken_of():
    made = swept(LR)
    (summary,) = summarise(made)
    # 0.3 has the lowest mean of cope, but a seed of it failed
    assert [row.label for row in summary.best] == ["none, lr=0.2", "cope, lr=0.1"]
    assert said(made) == (
        "In distribution: best: cope at lr 0.1 (10.3 ± 0.6); worse: none at lr 0.2 by 30.0 (30.0 "
        "to 30.0)."
    )
    about = " ".join(about_answers(summary))
    assert "Of each scheme the lr that does best in distribution stands for it" in about
    assert "chosen on the test sequences" in about


def test_among_equal_rates_the_lowest_loss_stands_for_the_scheme():
    made = swept({"none": {"0.1": [0.0], "0.2": [0.0]}, "cope": {"0.1": [0.1], "0.2": [0.1]}})
    made = [
        replace(one, metrics={s: m | {"loss": 1 / float(one.run.swept["train.lr"])}
                              for s, m in one.metrics.items()})
        for one in made
    ]  # fmt: skip
    assert [row.label for row in summarise(made)[0].best] == ["none, lr=0.2", "cope, lr=0.2"]


def test_the_tables_of_other_metrics_show_the_same_rows():
    made = swept(LR)
    made = [
        replace(one, metrics={s: m | {"sequence_error": 1 - m["error"]}
                              for s, m in one.metrics.items()})
        for one in made
    ]  # fmt: skip
    (summary,) = summarise(made, metrics=[METRICS["sequence_error"]])
    (further,) = summary.further
    assert [row.label for row in further.best] == [row.label for row in summary.best]
    assert further.best[0].cells["sparse"].mean == pytest.approx(1 - 1.21 / 3)


def test_one_scheme_alone_has_all_its_rates_compared():
    made = swept({"rotary": {"0.1": [0.5] * 3, "0.2": [0.4] * 3}})
    assert said(made) == (
        "In distribution: best: rotary at lr 0.2 (40.0 ± 0.0); worse: rotary at lr 0.1 by 10.0 "
        "(10.0 to 10.0)."
    )


@pytest.mark.parametrize(
    ("asked", "name"),
    [(None, "none at the same lr"), ("cope", "cope at the same lr"), ("cope, lr=0.1",) * 2],
)
def test_the_baseline_has_one_name(asked, name):
    (summary,) = summarise(swept(LR), asked)
    assert baseline(summary) == name


def test_what_is_swept_beside_the_scheme_is_grouped_in_every_medium(tmp_path, open_page):
    made = swept(LR)
    made = [replace(one, run=replace(one.run, folder=tmp_path / str(number)))
            for number, one in enumerate(made)]  # fmt: skip
    found = findings(made, **{"train.lr": [0.1, 0.2, 0.3]})
    write(tmp_path, found)
    text = (tmp_path / "report.md").read_text()
    assert text.index("## The answer") < text.index("## What was asked") < text.index("## Results")
    shown, _, folded = text.partition("<details><summary>Every lr of each scheme</summary>")
    assert "| cope, lr=0.2 |" not in shown
    assert all(f"| {row.label} |" in folded for row in found.summaries[0].rows)
    assert "### Against none at the same lr" in text
    opened = open_page(tmp_path / "report.html")
    tables = opened.locator("table.sortable")
    assert tables.nth(0).locator("tbody tr").count() == 2
    assert not tables.nth(1).is_visible()
    opened.locator("details.folded summary").first.click()
    assert tables.nth(1).is_visible()
    assert tables.nth(1).locator("tbody tr").count() == 6
    answer = opened.locator("#answer")
    assert answer.locator("li b").first.inner_text() == "cope at lr 0.1"
    assert answer.bounding_box()["y"] < opened.locator("nav").bounding_box()["y"]
    assert "none at the same lr" in opened.locator("h3").first.inner_text()
    assert opened.locator("figure.swept").count() == 2
    # the last value of cope is the end of the grid: 0.1 of 0.1, 0.2, 0.3
    assert "one beyond may be better: cope at lr 0.1 (selective copy)" in text


def test_over_a_rate_there_is_a_line_for_each_scheme_and_over_words_none():
    (numbers,) = summarise(swept(LR))
    drawn = [chart for chart in charts(numbers) if chart.kind == "swept"]
    assert [chart.title for chart in drawn] == [
        "Error, % over lr, in distribution",
        "Error, % over lr, sparse",
    ]
    said = re.findall(r"<title>([^<]*)</title>", drawn[0].svg)
    assert [text for text in said if " at " in text] == [
        "none: 50.33% at 0.1", "none: 40.33% at 0.2", "none: 60.33% at 0.3",
        "cope: 10.33% at 0.1", "cope: 20.33% at 0.2", "cope: 15% at 0.3",
    ]  # fmt: skip
    errors = {s: {"bf16": [0.1], "no": [0.2]} for s in ("none", "cope")}
    (other,) = summarise(swept(errors, "train.precision"))
    assert not [chart for chart in charts(other) if chart.kind == "swept"]
    (bars, _) = [chart for chart in charts(other) if chart.kind == "split"]
    assert bars.svg.count("data-series") == 4


def test_each_swept_key_is_a_column_of_every_file(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "model: {dim: 16, depth: 1, heads: 2, position: {name: cope}}\n"
        "task: {name: selective_copy}\n"
        "sweep: {model.position.max_pos: [4, 8], task.blanks: [3, 4], train.lr: [1.0e-3, 0.01]}\n"
    )
    runs = plan(load_config(file, sweep=True), tmp_path)
    assert [run.name for run in runs[:2]] == [
        "cope-max_pos=4-seed0-blanks=3-lr=0.001", "cope-max_pos=4-seed0-blanks=3-lr=0.01",
    ]  # fmt: skip
    made = [Outcome(run, reason="not run") for run in runs]
    found = findings(made)
    write_results(tmp_path / "results.csv", made, ())
    write_timings(tmp_path / "timings.csv", made, found.timings)
    write_summary(tmp_path / "summary.csv", found.summaries)
    for name in ("summary.csv", "results.csv", "timings.csv"):
        with (tmp_path / name).open() as opened:
            rows = list(csv.DictReader(opened))
        for key, values in [
            ("model.position.max_pos", {"4", "8"}),
            ("task.blanks", {"3", "4"}),
            ("train.lr", {"0.001", "0.01"}),
        ]:
            assert {row[key] for row in rows} == values, (name, key)
        assert {row["scheme"] for row in rows} == {"cope(max_pos=4)", "cope(max_pos=8)"}


def test_pandas_reads_the_summary_as_numbers_and_schemes_as_they_are_called(tmp_path):
    pandas = pytest.importorskip("pandas")
    made = swept(LR) + swept({"rotary": {"0.1": [None] * 3}})
    write_summary(tmp_path / "summary.csv", summarise(made))
    read = pandas.read_csv(tmp_path / "summary.csv")
    assert set(read["scheme"]) == {"none", "cope", "rotary"}
    for column in ("train.lr", "mean", "std", "difference", "p"):
        assert read[column].dtype.kind == "f", column
