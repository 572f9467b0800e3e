"""Numbers and names as people write them, the same in every table and page."""

from __future__ import annotations

import math
import re

PERCENT = frozenset({"error", "sequence_error"})
"""Metrics that are shares, shown in %; others are shown as they are."""
LAST_DIGIT = 0.001
"""0.1 % for shares, the third decimal for others: what `number` shows."""
NOTHING = "-"
"""Where there is no number."""


def words(name: str) -> str:
    """A name as people write it: ``in_distribution`` → ``in distribution``; options stay."""
    head, bracket, options = name.partition("(")
    return head.replace("_", " ") + bracket + options


def markdown(text: str) -> str:
    """Text that Markdown, also in a cell of a table, shows as it stands, in one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*|\[\]$~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def unit(metric: str) -> str:
    """The metric as a heading: ``error, %``."""
    return f"{words(metric)}, %" if metric in PERCENT else words(metric)


def number(value: float, metric: str) -> str:
    """A value as it is shown: shares in % with one decimal, others with three."""
    text = f"{100 * value:.1f}" if metric in PERCENT else f"{value:.3f}"
    return text.replace("-", "−")


def signed(value: float, metric: str) -> str:
    """A difference: ``+3.1``, ``−0.012``; no sign where only zeros are shown."""
    text = number(value, metric)
    return (
        text.removeprefix("−")
        if float(text.replace("−", "-")) == 0
        else (text if value < 0 else f"+{text}")
    )


def interval_text(ends: tuple[float, float], metric: str, *, signs: bool = False) -> str:
    """``[11.9, 12.7]``."""
    show = signed if signs else number
    return f"[{show(ends[0], metric)}, {show(ends[1], metric)}]"


def seconds_text(seconds: float | None) -> str:
    """Seconds with two significant digits or more; ``-`` for None."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def megabytes_text(count: float | None) -> str:
    """Bytes in MB with two significant digits or more; ``-`` for None."""
    return NOTHING if count is None else seconds_text(count / 1e6)


def ratio_text(ratio: float | None) -> str:
    """``×1.24``; ``-`` for None."""
    return NOTHING if ratio is None or not math.isfinite(ratio) else f"×{ratio:.2f}"


def count_text(count: int | None) -> str:
    """``101,568``; ``-`` for None."""
    return NOTHING if count is None else f"{count:,}"


def p_text(p: float | None) -> str:
    """``0.25``, ``0.031``: two significant digits; ``-`` for None."""
    if p is None:
        return NOTHING
    return f"{p:.2f}" if p >= 0.1 else f"{p:.2g}" if p >= 0.0001 else "<0.0001"
