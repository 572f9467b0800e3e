"""The tables that people read say what was measured: the overviews against the CSV files of
results/, and those against each other."""

import csv
import re
from pathlib import Path

import pytest

from xcope.compare import Outcome, plan, summarise
from xcope.compare.report import tables
from xcope.compare.report.markdown import results_row
from xcope.compare.report.write import write_summary
from xcope.config import load_config

ROOT = Path(__file__).parents[1]
SPLITS = {
    "sparse": "sparse",
    "longer by pass": "longer_pass",
    "held out": "held_out",
    "2×": "longer_2x",
    "8×": "longer_8x",
}


def overview(file: Path) -> list[list[str]]:
    """The cells of the table whose first column is called test."""
    _, _, rest = file.read_text().partition("| test |")
    lines = ("| test |" + rest.partition("\n\n")[0]).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def measured(folder: str, asked: str, split: str) -> dict[str, str]:
    """Scheme → the cell as the table has it."""
    with (ROOT / "results" / folder / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    variables = re.search(r"counting (\d)", asked)
    if variables:
        rows = [row for row in rows if row["task"] == f"counting(variables={variables[1]})"]
    cells = {}
    for row in rows:
        bits = row["metric"] == "bits_per_byte"
        text = f"{float(row['mean']):.2f}" if bits else f"{100 * float(row['mean']):.1f}"
        marked = f"**{text}**" if row["standing"] in ("best", "tied") else text
        cells[re.sub(r"\(max_pos=\d+\)", "", row["scheme"])] = marked
    return cells


@pytest.mark.parametrize("file", ["docs/choosing.md", "results/README.md"])
def test_the_overview_says_what_was_measured(file: str):
    (_, *schemes), _, *rows = overview(ROOT / file)
    assert len(rows) >= 12
    for first, *cells in rows:
        asked, folder = re.fullmatch(
            r"\[(.*)\]\((?:\.\./results/)?(\w+)/report.md\)", first
        ).groups()
        split = SPLITS[asked.partition(", ")[2]]
        if folder.startswith("indexing") and split == "held_out":
            split = "in_distribution"
        found = measured(folder, asked, split)
        assert cells == [found.get(scheme, "–") for scheme in schemes], asked


COMPARISONS = sorted(file.parent for file in (ROOT / "results").glob("*/summary.csv"))


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda folder: folder.name)
def test_the_same_tables_come_from_the_numbers_of_the_runs(folder: Path, tmp_path: Path):
    config = load_config(folder / "config.yaml", sweep=True, data=False)
    measured: dict[str, dict[str, dict[str, float]]] = {}
    with (folder / "results.csv").open() as file:
        for row in csv.DictReader(file):
            splits = measured.setdefault(row["run"], {})
            splits.setdefault(row["split"], {})[row["metric"]] = float(row["value"])
    outcomes = [Outcome(run, metrics=measured[run.name]) for run in plan(config, folder)]
    summaries = summarise(outcomes, config.baseline)
    write_summary(tmp_path / "summary.csv", summaries)
    assert (tmp_path / "summary.csv").read_bytes() == (folder / "summary.csv").read_bytes()
    report = (folder / "report.md").read_text()
    for summary in summaries:
        for row in tables.results(summary, ())[1]:
            assert f"| {' | '.join(results_row(row))} |" in report
