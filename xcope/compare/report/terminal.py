"""The table at the end of a comparison, for the terminal; best and tied in bold."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from xcope.compare.report.wording import count_text, megabytes_text, ratio_text, seconds_text, words
from xcope.compare.stats.costs import costs
from xcope.compare.stats.summary import Summary, spread_text


def terminal_table(summary: Summary) -> Table:
    """A rich table of the headline metric, with what each scheme costs."""
    table = Table(title=Text(f"{words(summary.task)}: {summary.unit}, {spread_text(summary)}"))
    table.add_column("scheme", no_wrap=True)
    for split in summary.splits:
        table.add_column(Text(words(split)), justify="right")
    for heading in ("parameters", "seconds", "memory, MB"):
        table.add_column(heading, justify="right")
    marked = {split: summary.standing(split) for split in summary.splits}
    for row in summary.rows:
        cells = [
            Text(summary.text(row, split), "bold" if row.label in marked[split] else "")
            for split in summary.splits
        ]
        cost = costs(summary, row)
        seconds = f"{seconds_text(cost.seconds)} ({ratio_text(cost.time)})"
        memory = f"{megabytes_text(cost.peak_bytes)} ({ratio_text(cost.memory)})"
        table.add_row(Text(row.label), *cells, count_text(cost.params), seconds, memory)
    return table
