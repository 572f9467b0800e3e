"""The tables of one task, before any medium; and how the terminal shows one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from xcope.compare.report.columns import COLUMNS, Column
from xcope.compare.report.wording import p_text, words
from xcope.compare.stats.summary import Row, Summary, spread_text
from xcope.training.metrics import NOTHING


@dataclass(frozen=True)
class Td:
    """A cell of a table.

    Args:
        text: its number.
        value: what it is sorted by; None is last.
        beside: what stands beside the number.
        below: further lines; the terminal has no place for them.
        mark: a word about the number: ``best``, ``tied``, ``better``, ….
    """

    text: str
    value: float | str | None
    beside: str = ""
    below: tuple[str, ...] = ()
    mark: str = ""


def results(summary: Summary, columns: Sequence[Column]) -> tuple[list[str], list[list[Td]]]:
    """Headings and rows: the metric on each split, then what each scheme costs."""
    head = ["scheme", *map(words, summary.splits), *(column.heading for column in columns)]
    standing = {split: summary.standing(split) for split in summary.splits}
    bases = [summary.base(row) for row in summary.rows]
    rows = []
    for row in summary.rows:
        label = Td(row.label, row.label, below=("baseline",) if row in bases else ())
        cells = [_cell(summary, row, s, standing[s].get(row.label, "")) for s in summary.splits]
        rows.append([label, *cells, *(_cost(summary, row, column) for column in columns)])
    return head, rows


def _cell(summary: Summary, row: Row, split: str, mark: str) -> Td:
    cell = row.cells[split]
    text, *beside = summary.texts(row, split)
    below = (summary.metric.interval(cell.interval),) if cell.interval else ()
    return Td(text, cell.mean if cell.values else None, " ".join(beside), below, mark)


def _cost(summary: Summary, row: Row, column: Column) -> Td:
    mean = row.mean(column.of)
    beside = f"({column.beside(summary, row)})" if column.beside else ""
    return Td(column.shown(mean), mean, beside)


def differences(summary: Summary) -> tuple[list[str], list[list[Td]]]:
    """Headings and rows: each scheme less the baseline; no rows for a single seed."""
    head = ["scheme", *map(words, summary.splits)]
    if summary.seeds < 2:
        return head, []
    pairs = [(row, base) for row in summary.rows if (base := summary.base(row))]
    return head, [
        [Td(row.label, row.label), *(_difference(summary, row, base, s) for s in summary.splits)]
        for row, base in pairs
    ]


def _difference(summary: Summary, row: Row, base: Row, split: str) -> Td:
    pair, metric = summary.against(row, base, split), summary.metric
    if pair.interval is None:
        return Td(NOTHING, None)
    below = (metric.interval(pair.interval, signs=True), f"p {p_text(pair.p)}")
    return Td(metric.signed(pair.mean), pair.mean, below=below, mark=pair.verdict)


def baselines(summary: Summary) -> list[str]:
    """The labels of the rows that others are compared with."""
    bases = [base for row in summary.rows if (base := summary.base(row))]
    return list(dict.fromkeys(base.label for base in bases))


def terminal_table(summary: Summary, columns: Sequence[Column] | None = None) -> Table:
    """A rich table: the metric on each split, best and tied in bold, and what each scheme costs.

    Args:
        columns: None for the usual ones.
    """
    if columns is None:
        columns = [column for column in COLUMNS.values() if column.tabled]
    head, rows = results(summary, columns)
    heading = f"{words(summary.task)}: {summary.metric.heading}, {spread_text(summary)}"
    table = Table(title=Text(heading))
    for place, title in enumerate(head):
        table.add_column(Text(title), justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        cells = [Text(f"{td.text} {td.beside}".rstrip(), "bold" * bool(td.mark)) for td in row]
        table.add_row(*cells)
    return table
