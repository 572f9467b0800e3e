"""Compare positional schemes: a sweep's runs side by side, then tables, plots and a report."""

from xcope.compare.report.terminal import terminal_table
from xcope.compare.run.errors import CompareError, CompareFailedError, CompareInterruptedError
from xcope.compare.run.plan import Run, plan
from xcope.compare.run.results import Outcome
from xcope.compare.run.sweep import Comparison, compare, default_jobs
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
