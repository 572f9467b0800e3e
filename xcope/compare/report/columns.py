"""What a scheme costs: each column of the tables is one record, which every medium reads.

To add a column, `register` its record; with ``tabled=False`` it is one that ``--show`` adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from xcope.compare.run.plan import CompareError
from xcope.compare.run.results import Outcome
from xcope.compare.stats.summary import Quantity, Row, Summary, bare_params
from xcope.config import build_task
from xcope.errors import FlagError, did_you_mean, listing
from xcope.registry import add
from xcope.training.metrics import METRICS, NOTHING, Metric


def digits(value: float) -> str:
    """``12``, ``1.2``: two significant digits or more, at most one decimal."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def count(value: float) -> str:
    """``101,568``."""
    return f"{value:,.0f}"


def _no_note(outcomes: Sequence[Outcome]) -> str:
    return ""


def times(cost: Quantity) -> Callable[[Summary, Row], str]:
    """What stands beside a cost: how many times the baseline's it is, ``×1.24``."""

    def text(summary: Summary, row: Row) -> str:
        ratio = row.times(cost, summary.base(row) or row)
        return NOTHING if ratio is None or not math.isfinite(ratio) else f"×{ratio:.2f}"

    return text


@dataclass(frozen=True)
class Column:
    """What a scheme costs, as a column of every table.

    Args:
        name: in ``timings.csv`` and for ``--show``.
        heading: in tables for people.
        of: the cost of a run; None where it is not known. Rows show the mean over seeds.
        text: how a mean is written for people.
        beside: what stands beside the mean, as a text: what it is of the baseline's, say.
        exact: how ``timings.csv`` has the cost of one run.
        better: whether ``"lower"`` or ``"higher"`` costs are, for pictures.
        note: what a reader has to know, from the runs that have results; empty for nothing.
        tabled: whether tables have it without being asked.
        timed: whether ``timings.csv`` has it without being asked.
    """

    name: str
    heading: str
    of: Quantity
    text: Callable[[float], str] = digits
    beside: Callable[[Summary, Row], str] | None = None
    exact: Callable[[float], str] = str
    better: Literal["lower", "higher"] = "lower"
    note: Callable[[Sequence[Outcome]], str] = _no_note
    tabled: bool = True
    timed: bool = True

    def shown(self, value: float | None) -> str:
        """A value as tables show it; ``-`` for None."""
        return NOTHING if value is None else self.text(value)

    def written(self, outcome: Outcome) -> str:
        """The cost of a run as ``timings.csv`` has it; empty where it is not known."""
        value = self.of(outcome) if outcome.ok else None
        return "" if value is None else self.exact(value)


COLUMNS: dict[str, Column] = {}
"""Name → column, in the order of tables."""


def register(column: Column) -> Column:
    """Add a column.

    Raises:
        FlagError: the name is taken.
    """
    if column.name in METRICS:
        raise FlagError("column", f"there is a metric {column.name!r} already")
    add(COLUMNS, column.name, column, "column")
    return column


def chosen(show: Sequence[str]) -> tuple[list[Metric], list[Column]]:
    """The metrics and the columns of these names.

    Raises:
        CompareError: there is none of such a name.
    """
    for name in show:
        if name not in {*METRICS, *COLUMNS}:
            raise CompareError(
                f"--show {name}: there is no such metric or column; choose among "
                f"{listing([*METRICS, *COLUMNS])}{did_you_mean(name, [*METRICS, *COLUMNS])}"
            )
    return (
        [one for one in METRICS.values() if one.name in show],
        [one for one in COLUMNS.values() if one.name in show],
    )


def _own_params(summary: Summary, row: Row) -> str:
    """Parameters beyond those of the same model without a scheme: ``+1,024``."""
    bare = bare_params(row.outcomes[0].run.config)
    if bare is None or not row.finished:
        return NOTHING
    own = row.finished[0].params - bare
    return f"{own:+,}" if own else "0"


def _steps_per_second(outcome: Outcome) -> float:
    return outcome.steps / outcome.seconds


def _tokens_per_second(outcome: Outcome) -> float | None:
    config = outcome.run.config
    tokens = config.train.batch_size * build_task(config).seq_len("train")
    return tokens / outcome.pace if outcome.pace else None


def _about_seconds(outcomes: Sequence[Outcome]) -> str:
    return (
        "Seconds are those of training, mean over seeds, while other runs may share the machine; "
        "their × leaves out the first step, in which kernels are compiled or loaded."
    )


def _about_memory(outcomes: Sequence[Outcome]) -> str:
    measured = [one for one in outcomes if one.peak_bytes is not None]
    if any(str(one.timing.get("device", "")).startswith("cuda") for one in measured):
        return "Memory is the most that PyTorch had allocated on the GPU while training."
    if not measured:
        return ""
    return (
        "Memory is the peak of the run's process while training (resident, without mapped "
        "files) over what it held before the model was made; the code of kernels that a "
        "scheme loads counts, some 10 MB."
    )


def _about_tokens(outcomes: Sequence[Outcome]) -> str:
    return "Tokens per second are those of training without its first step; more is faster."


register(
    Column(
        "params",
        "parameters (own)",
        lambda outcome: outcome.params,
        text=count,
        beside=_own_params,
        timed=False,
    )
)
register(Column("steps", "steps", lambda outcome: outcome.steps, text=count, tabled=False))
register(
    Column(
        "seconds",
        "seconds",
        lambda outcome: outcome.seconds,
        beside=times(lambda outcome: outcome.pace),
        exact="{:.2f}".format,
        note=_about_seconds,
    )
)
register(
    Column(
        "steps_per_second",
        "steps per second",
        _steps_per_second,
        exact="{:.2f}".format,
        better="higher",
        tabled=False,
    )
)
register(
    Column(
        "peak_bytes",
        "memory, MB",
        lambda outcome: outcome.peak_bytes,
        text=lambda value: digits(value / 1e6),
        beside=times(lambda outcome: outcome.peak_bytes),
        note=_about_memory,
    )
)
register(
    Column(
        "tokens_per_second",
        "tokens per second",
        _tokens_per_second,
        text=count,
        beside=times(_tokens_per_second),
        exact="{:.0f}".format,
        better="higher",
        note=_about_tokens,
        tabled=False,
        timed=False,
    )
)
