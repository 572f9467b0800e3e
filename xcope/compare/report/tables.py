"""The tables of one task, before any medium; and how the terminal shows one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

from xcope.compare.report.columns import COLUMNS, Column
from xcope.compare.report.wording import p_text, words
from xcope.compare.stats.inference import LEAST_SEEDS
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
        mark: a word about the number: ``best``, ``tied``, ``better``, …, where a test shows it.
    """

    text: str
    value: float | str | None
    beside: str = ""
    below: tuple[str, ...] = ()
    mark: str = ""


def results(
    summary: Summary, columns: Sequence[Column], rows: Sequence[Row] | None = None
) -> tuple[list[str], list[list[Td]]]:
    """Headings and rows: the metric on each split, then what each scheme costs.

    Args:
        rows: which; the best is the best among them. None for all.
    """
    among = summary if rows is None else replace(summary, rows=tuple(rows))
    head = ["scheme", *map(words, summary.splits), *(column.heading for column in columns)]
    standing = {split: among.standing(split) for split in summary.splits}
    bases = [summary.base(row) for row in summary.rows]
    body = []
    for row in among.rows:
        label = Td(row.label, row.label, below=("baseline",) if row in bases else ())
        cells = [_cell(summary, row, s, standing[s].get(row.label, "")) for s in summary.splits]
        body.append([label, *cells, *(_cost(summary, row, column) for column in columns)])
    return head, body


def _cell(summary: Summary, row: Row, split: str, mark: str) -> Td:
    cell = row.cells[split]
    text, *beside = summary.texts(row, split)
    below = (summary.metric.interval(cell.interval),) if cell.interval else ()
    return Td(text, cell.mean if cell.values else None, " ".join(beside), below, mark)


def _cost(summary: Summary, row: Row, column: Column) -> Td:
    mean = row.mean(column.of)
    beside = f"({column.beside(summary, row)})" if column.beside else ""
    return Td(column.shown(mean), mean, beside)


def differences(
    summary: Summary, rows: Sequence[Row] | None = None
) -> tuple[list[str], list[list[Td]]]:
    """Headings and rows: each scheme less the baseline; no rows for a single seed.

    Args:
        rows: which; None for all.
    """
    head = ["scheme", *map(words, summary.splits)]
    if summary.seeds < 2:
        return head, []
    chosen = summary.rows if rows is None else rows
    pairs = [(row, base) for row in chosen if (base := summary.base(row))]
    return head, [
        [Td(row.label, row.label), *(_difference(summary, row, base, s) for s in summary.splits)]
        for row, base in pairs
    ]


def _difference(summary: Summary, row: Row, base: Row, split: str) -> Td:
    pair, metric = summary.against(row, base, split), summary.metric
    if pair.interval is None:
        return Td(NOTHING, None)
    below = [metric.interval(pair.interval, signs=True)]
    if pair.seeds >= LEAST_SEEDS:
        below.append(f"p {p_text(pair.p_t)}, sign flips {p_text(pair.p)}")
    return Td(metric.signed(pair.mean), pair.mean, below=tuple(below), mark=pair.verdict)


def baseline(summary: Summary) -> str:
    """What rows are compared with: ``rotary``, ``rotary at the same lr``; empty for a lone row."""
    bases = {base.label: base for row in summary.rows if (base := summary.base(row))}
    if len(bases) < 2:
        return "".join(bases)
    return f"{next(iter(bases.values())).scheme} at the same {summary.swept}"


def terminal_table(summary: Summary, columns: Sequence[Column] | None = None) -> Table:
    """A rich table: the metric on each split, best and tied in bold, and what each scheme costs.

    Args:
        columns: None for the usual ones.
    """
    if columns is None:
        columns = [column for column in COLUMNS.values() if column.tabled]
    best = summary.best
    rest = [row for row in summary.rows if row not in best]
    head, rows = results(summary, columns, best)
    heading = f"{words(summary.task)}: {summary.metric.heading}, {spread_text(summary)}"
    caption = f"The best {summary.swept} of each scheme, then the others." if rest else None
    table = Table(title=Text(heading), caption=caption and Text(caption), caption_justify="left")
    for place, title in enumerate(head):
        table.add_column(Text(title), justify="right" if place else "left", no_wrap=not place)
    for place, row in enumerate([*rows, *results(summary, columns, rest)[1]], 1):
        bold = "bold" if place <= len(rows) else "dim"
        cells = [Text(f"{td.text} {td.beside}".rstrip(), bold * bool(td.mark)) for td in row]
        table.add_row(
            *cells, end_section=place == len(rows), style="" if place <= len(rows) else "dim"
        )
    return table
