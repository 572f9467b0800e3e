"""The table at the end of a comparison, for the terminal: schemes × splits, best in bold."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from xcope.compare.summary import Summary, seconds_text, spread_text, words


def terminal_table(summary: Summary) -> Table:
    """A rich table of the headline metric, with parameters and training seconds."""
    table = Table(title=Text(f"{words(summary.task)}: {summary.unit}, {spread_text(summary)}"))
    table.add_column("scheme", no_wrap=True)
    for split in summary.splits:
        table.add_column(words(split), justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("seconds", justify="right")
    best = {split: summary.best(split) for split in summary.splits}
    for row in summary.rows:
        cells = [
            Text(summary.text(row, split), "bold" if row.label in best[split] else "")
            for split in summary.splits
        ]
        params = "-" if row.params is None else f"{row.params:,}"
        table.add_row(Text(row.label), *cells, params, seconds_text(row.seconds))
    return table
