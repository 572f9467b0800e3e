"""A trace as a table for the terminal: a line for each head."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from xcope.inspect.labels import visible
from xcope.inspect.traced import HeadSummary, Trace, summary


def summary_table(traced: Trace, title: str) -> Table:
    """A line for each head; columns that no head fills are left out."""
    lines = [_cells(one) for one in summary(traced)]
    if len({line["scheme"] for line in lines}) == 1:  # the title names it
        lines = [line | {"scheme": ""} for line in lines]
    shown = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in columns:
        words = name.startswith(("scheme", "counts", "attends"))
        shown.add_column(name, justify="left" if words else "right")
    for line in lines:
        shown.add_row(*(Text(line[name] or "–") for name in columns))
    return shown


def _cells(one: HeadSummary) -> dict[str, str]:
    """A head's line, column by column; nothing where it has none."""
    counts = one.saturated is not None  # to a table: its bias follows from the positions
    bias = "" if one.bias is None or counts else f"{one.bias[0]:.1f} … {one.bias[1]:.1f}"
    return {
        "layer,\nhead": f"{one.layer}, {one.head}",
        "scheme": one.scheme,
        "mean\ngate": "" if one.mean_gate is None else f"{one.mean_gate:.2f}",
        "satu-\nrated": "" if one.saturated is None else f"{one.saturated:.0%}",
        "counts\n(mean gate)": _named(one.counted),
        "bias": bias,
        "attends to\n(share)": _named(one.attended),
        "tokens\nback": f"{one.distance:.1f}",
    }


def _named(labels: tuple[tuple[str, float], ...]) -> str:
    """``. .98, 3 .12``."""
    return ", ".join(
        f"{visible(label)} {f'{value:.2f}'.removeprefix('0')}" for label, value in labels
    )
