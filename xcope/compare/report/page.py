"""`report.html`: the whole comparison as one page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from xcope.compare.report import wording
from xcope.compare.report.charts import Chart, charts
from xcope.compare.report.diffs import Change, changes
from xcope.compare.report.findings import Findings
from xcope.compare.report.markdown import score_text, settings
from xcope.compare.report.notes import about_costs, about_results, about_test
from xcope.compare.report.palette import Look, looks
from xcope.compare.report.wording import interval_text, words
from xcope.compare.run.plan import as_text
from xcope.compare.run.results import Outcome
from xcope.compare.run.tuning import Pick
from xcope.compare.stats.costs import costs
from xcope.compare.stats.summary import Row, Summary, spread_text
from xcope.config import build_task
from xcope.environment import versions


def breakable(label: str) -> Markup:
    """A label that may go on in a new line after a bracket, comma, plus or equals sign."""
    return Markup(re.sub(r"([(,+=])", r"\1<wbr>", str(escape(label))))


def page(found: Findings) -> str:
    """The page as HTML."""
    sweep = found.config.sweep.items()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            found=found,
            sweep=[(key, ", ".join(map(as_text, values))) for key, values in sweep],
            settings=[line.removeprefix("- ").replace("`", "") for line in settings(found.config)],
            tasks=[TaskView(number, one) for number, one in enumerate(found.summaries)],
            tuning=[PickView(pick) for pick in found.picks],
            runs=list(run_views(found.outcomes)),
            versions=versions(),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("xcope.compare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


@dataclass(frozen=True)
class Td:
    """A cell of a table.

    Args:
        text: what stands in it.
        value: what it is sorted by; None sorts last.
        below: further lines.
        mark: a word that is shown beside the number: ``best``, ``tied``, ``better``, ….
    """

    text: str
    value: float | str | None
    below: tuple[str, ...] = ()
    mark: str = ""


class TaskView:
    """One task: its tables and charts."""

    def __init__(self, number: int, summary: Summary) -> None:
        task = build_task(summary.rows[0].outcomes[0].run.config)
        self.anchor = f"task-{number}"
        self.name = words(summary.task)
        self.paper = task.paper
        self.lengths = [(words(s), task.seq_len(s)) for s in ("train", *summary.splits)]
        self.unit = summary.unit
        self.spread = spread_text(summary)
        self.schemes: dict[str, Look] = looks([row.label for row in summary.rows])
        self.charts: list[Chart] = list(charts(summary))
        self.head = ["scheme", *map(words, summary.splits), "parameters", "seconds", "memory, MB"]
        self.rows = [[*_results(summary, row), *_costs(summary, row)] for row in summary.rows]
        self.notes = [*about_results(summary), *about_costs(summary)]
        self.pair_head = ["scheme", *map(words, summary.splits)]
        pairs = [(row, base) for row in summary.rows if (base := summary.base(row))]
        self.baselines = ", ".join(dict.fromkeys(base.label for _, base in pairs))
        self.pairs = [_differences(summary, *pair) for pair in pairs] if summary.seeds > 1 else []
        self.pair_notes = list(about_test(summary))


def _results(summary: Summary, row: Row) -> Iterator[Td]:
    compared = any(summary.base(other) is row for other in summary.rows)
    yield Td(row.label, row.label, ("baseline",) if compared else ())
    for split in summary.splits:
        cell = row.cells[split]
        ends = cell.interval
        text, *below = summary.texts(row, split)
        below += [interval_text(ends, summary.metric)] if ends else []
        mark = summary.standing(split).get(row.label, "")
        yield Td(text, cell.mean if cell.values else None, tuple(below), mark)


def _costs(summary: Summary, row: Row) -> Iterator[Td]:
    cost = costs(summary, row)
    own = () if cost.own is None else (f"own {cost.own:,}",)
    yield Td(wording.count_text(cost.params), cost.params, own)
    time, memory = wording.ratio_text(cost.time), wording.ratio_text(cost.memory)
    yield Td(wording.seconds_text(cost.seconds), cost.seconds, (time,))
    yield Td(wording.megabytes_text(cost.peak_bytes), cost.peak_bytes, (memory,))


def _differences(summary: Summary, row: Row, base: Row) -> list[Td]:
    cells = [Td(row.label, row.label)]
    for split in summary.splits:
        pair = summary.against(row, base, split)
        if pair.interval is None:
            cells.append(Td(wording.NOTHING, None))
            continue
        ends = interval_text(pair.interval, summary.metric, signs=True)
        below = (ends, f"p {wording.p_text(pair.p)}")
        text = wording.signed(pair.mean, summary.metric)
        cells.append(Td(text, pair.mean, below, pair.verdict))
    return cells


class PickView:
    """What was tried for one scheme on one task."""

    def __init__(self, pick: Pick) -> None:
        self.task, self.scheme = words(pick.task), pick.variant
        self.at_edge = pick.at_edge
        self.tried = [
            (", ".join(f"{key} {value}" for key, value in one.tried.items()), score_text(one),
             one is pick.picked)
            for one in pick.candidates
        ]  # fmt: skip


@dataclass(frozen=True)
class RunView:
    """One run: what came out, its config, and what tells it from the run before it."""

    outcome: Outcome
    numbers: list[tuple[str, str]]
    before: str
    changes: list[Change]
    config: str


def run_views(outcomes: Sequence[Outcome]) -> Iterator[RunView]:
    """A view of each run in the order of the sweep."""
    before: Outcome | None = None
    for outcome in outcomes:
        metric = outcome.run.metric
        numbers = [
            (words(split), wording.number(values[metric], metric))
            for split, values in outcome.metrics.items()
        ]
        if outcome.ok:
            numbers.append(("seconds", wording.seconds_text(outcome.seconds)))
            numbers.append(("MB", wording.megabytes_text(outcome.peak_bytes)))
        config = outcome.run.config
        yield RunView(
            outcome,
            numbers,
            before.run.name if before else "",
            changes(before.run.config, config) if before else [],
            config.to_yaml(),
        )
        before = outcome
