"""The tables that people read say what was measured: results/README.md against its CSV files."""

import csv
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("file", ["README.md", "results/README.md"])
def test_the_overview_says_what_was_measured(file: str):
    (_, *schemes), _, *rows = overview(ROOT / file)
    assert len(rows) >= 12
    for first, *cells in rows:
        asked, folder = re.fullmatch(r"\[(.*)\]\((?:results/)?(\w+)/report.md\)", first).groups()
        split = SPLITS[asked.partition(", ")[2]]
        if folder.startswith("indexing") and split == "held_out":
            split = "in_distribution"
        found = measured(folder, asked, split)
        assert cells == [found.get(scheme, "–") for scheme in schemes], asked
