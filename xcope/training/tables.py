"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from xcope.tasks import Task

HEADINGS = {
    "loss": "loss (nats)",
    "error": "error %",
    "sequence_error": "sequence error %",
    "bits_per_byte": "bits per byte",
}
SHARES = frozenset({"error", "sequence_error"})


def results_table(
    splits: Mapping[str, Mapping[str, float]], task: Task, title: str | None = None
) -> Table:
    """One row per split with its length, one column per metric; shares in per cent.

    Where every byte is scored no sequence is without an error, and that column is left out.
    """
    metrics = list(next(iter(splits.values()), {}))
    if "bits_per_byte" in metrics:
        metrics.remove("sequence_error")
    table = Table("split", title=Text(title) if title else None, title_justify="left")
    for heading in ("tokens", *(HEADINGS[name] for name in metrics)):
        table.add_column(heading, justify="right")
    for split, values in splits.items():
        cells = (_cell(name, values[name]) for name in metrics)
        table.add_row(Text(split), str(task.seq_len(split)), *cells)
    return table


def _cell(metric: str, value: float) -> str:
    return f"{100 * value:.2f}" if metric in SHARES else f"{value:.4f}"
