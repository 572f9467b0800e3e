"""Compare positional schemes: a sweep's runs side by side, then tables, plots and a report."""

from xcope.compare.comparison import Comparison, compare, default_jobs
from xcope.compare.report.tables import terminal_table
from xcope.compare.run.plan import (
    CompareError,
    CompareFailedError,
    CompareInterruptedError,
    Run,
    plan,
)
from xcope.compare.run.results import Outcome
from xcope.compare.stats.summary import Cell, Row, Summary, summarise

__all__ = [
    "Cell",
    "CompareError",
    "CompareFailedError",
    "CompareInterruptedError",
    "Comparison",
    "Outcome",
    "Row",
    "Run",
    "Summary",
    "compare",
    "default_jobs",
    "plan",
    "summarise",
    "terminal_table",
]
