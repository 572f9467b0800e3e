"""`report.html`: the whole comparison as one page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from xcope.compare.report import tables
from xcope.compare.report.answer import about_answers, about_best, answers
from xcope.compare.report.charts import Chart, charts, cost_chart, drawn, run_charts
from xcope.compare.report.columns import Column
from xcope.compare.report.findings import Findings
from xcope.compare.report.markdown import score_text, settings
from xcope.compare.report.wording import about_costs, about_results, about_test, words
from xcope.compare.run.plan import as_text
from xcope.compare.run.results import Outcome
from xcope.compare.run.tuning import Pick
from xcope.compare.stats.summary import Summary, spread_text
from xcope.config import Config, build_task
from xcope.environment import versions
from xcope.plotting import DARK, Look, looks


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
            tasks=[TaskView(number, one, found) for number, one in enumerate(found.summaries)],
            tuning=[PickView(pick) for pick in found.picks],
            runs=list(run_views(found)),
            versions=versions(),
            dark=DARK,
            files=list(files(found)),
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


def files(found: Findings) -> Iterator[tuple[str, str]]:
    """The files beside the page, and what is in them."""
    yield "summary.csv", "means, intervals, tests"
    yield "results.csv", "every number"
    yield "timings.csv", "what each run cost"
    if found.picks:
        yield "tuning.csv", "what was tried"
    yield "config.yaml", "the sweep"
    yield "report.md", "this page as Markdown"


class TableView:
    """The tables and charts of one metric on one task."""

    def __init__(self, summary: Summary, columns: Sequence[Column]) -> None:
        self.heading = summary.metric.heading
        self.swept = summary.swept
        self.head, self.rows = tables.results(summary, columns, summary.best)
        self.pair_head, self.pairs = tables.differences(summary, summary.best)
        folded = len(summary.best) < len(summary.rows)
        self.every = tables.results(summary, columns)[1] if folded else []
        self.every_pair = tables.differences(summary)[1] if folded else []
        self.notes = list(about_results(summary))
        if folded:
            self.notes.insert(1, about_best(summary))
        self.baseline = tables.baseline(summary)
        self.pair_notes = list(about_test(summary))
        self.charts: list[Chart] = list(charts(summary))


class TaskView:
    """One task: the tables of its headline metric, then of those that were asked for."""

    def __init__(self, number: int, summary: Summary, found: Findings) -> None:
        task = build_task(summary.rows[0].outcomes[0].run.config)
        self.anchor = f"task-{number}"
        self.name = words(summary.task)
        self.paper = task.paper
        self.lengths = [(words(s), task.seq_len(s)) for s in ("train", *summary.splits)]
        self.spread = spread_text(summary)
        self.about = " ".join(about_answers(summary))
        self.answers = answers(summary)
        self.schemes: dict[str, Look] = looks([row.label for row in drawn(summary).rows])
        self.headline = TableView(summary, found.columns)
        self.headline.notes += about_costs(summary, found.columns)
        self.headline.charts += run_charts(summary)
        self.headline.charts += [cost_chart(summary, column) for column in found.asked]
        self.further = [TableView(one, ()) for one in summary.further]


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


Change = tuple[str, str, str]
"""Key, value before, value after; ``(none)`` where a config lacks the key."""
ABSENT = "(none)"


@dataclass(frozen=True)
class RunView:
    """One run: what came out, its config, and what tells it from the run before it."""

    outcome: Outcome
    numbers: list[tuple[str, str]]
    before: str
    changes: list[Change]
    config: str


def run_views(found: Findings) -> Iterator[RunView]:
    """A view of each run in the order of the sweep."""
    costs = [column for column in found.timings if column in found.columns]
    before: Outcome | None = None
    for outcome in found.outcomes:
        metric = outcome.run.headline
        numbers = [
            (words(split), metric.text(values[metric.name]))
            for split, values in outcome.metrics.items()
        ]
        if outcome.ok:
            numbers += [(column.heading, column.shown(column.of(outcome))) for column in costs]
        config = outcome.run.config
        yield RunView(
            outcome,
            numbers,
            before.run.name if before else "",
            changes(before.run.config, config) if before else [],
            config.to_yaml(),
        )
        before = outcome


def changes(before: Config, after: Config) -> list[Change]:
    """The keys that differ, in the order of the configs; a scheme with its options is one value."""
    old, new = (
        {key: as_text(value) for key, value in config.flat({"model.position"}).items()}
        for config in (before, after)
    )
    return [
        (key, old.get(key, ABSENT), new.get(key, ABSENT))
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
