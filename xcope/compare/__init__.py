"""Compare positional schemes: a sweep's runs side by side, then tables, plots and a report."""

from typing import TYPE_CHECKING

from xcope import lazy

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy.names(__name__, __file__)
