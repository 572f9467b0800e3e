"""Compare positional schemes: a sweep's runs side by side, then tables, plots and a report."""

from xcope.compare.errors import CompareError, CompareFailedError, CompareInterruptedError
from xcope.compare.plan import Run, plan
from xcope.compare.results import Outcome
from xcope.compare.summary import Cell, Row, Summary, summarise
from xcope.compare.sweep import Comparison, compare, default_jobs
from xcope.compare.table import terminal_table

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
