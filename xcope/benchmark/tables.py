"""What the reports share: how it was measured, Markdown tables, CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from xcope.environment import TIMED, processor, versions

Cells = Sequence[object]

QUICK_RUN = "**A quick run: too short to judge the bars by.**"


def machine(seconds: float) -> str:
    """On what it ran, and for how long, as a paragraph."""
    return (
        f"{processor()}; threads: {torch.get_num_threads()}; {versions(TIMED)}. The run took "
        f"{seconds / 60:.1f} minutes."
    )


def table(head: Cells, rows: Iterable[Cells]) -> str:
    """Markdown; all columns but the first are aligned to the right, a ``|`` in a cell is one."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    texts = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in one] for one in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in texts)


def write_csv(path: Path, head: Cells, rows: Iterable[Cells]) -> None:
    """A file whose first line names the columns; None is left empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(head)
        out.writerows(rows)
