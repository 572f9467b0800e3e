"""All files that are made from the runs' results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xcope.compare.report.charts import save_plots
from xcope.compare.report.columns import Column
from xcope.compare.report.findings import Findings
from xcope.compare.report.markdown import report
from xcope.compare.report.page import page
from xcope.compare.run.plan import folder_names
from xcope.compare.run.results import Outcome
from xcope.compare.run.tuning import Pick
from xcope.compare.stats.summary import Row, Summary
from xcope.markdown import write_csv
from xcope.training.metrics import Metric


def write(out: Path, found: Findings) -> None:
    """Write tables, plots and both reports to ``out``."""
    write_results(out / "results.csv", found.outcomes, found.metrics)
    write_timings(out / "timings.csv", found.outcomes, found.timings)
    write_summary(out / "summary.csv", found.summaries)
    if found.picks:
        write_tuning(out / "tuning.csv", found.picks)
    names = folder_names([summary.task for summary in found.summaries])
    plots = [
        save_plots(one, out, name, found.asked)
        for one, name in zip(found.summaries, names, strict=True)
    ]
    for name, text in (("report.md", report(found, plots)), ("report.html", page(found))):
        # a path that is not UTF-8 may stand in the command
        (out / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def write_results(path: Path, outcomes: Sequence[Outcome], metrics: Sequence[Metric]) -> None:
    """Write every number, one a line; a failed run is one line with the reason and no number.

    Args:
        metrics: written beside those that were measured, where they follow from one of them.

    Runs, splits and metrics stand in the order of the sweep and of the evaluation, and nothing
    in the file depends on time: the same seeds give the same bytes.
    """
    keys = _swept_keys(outcomes)
    header = ["run", "scheme", "seed", *keys, "status", "split", "metric", "value", "reason"]
    write_csv(path, header, (row for one in outcomes for row in _result_rows(one, keys, metrics)))


def _result_rows(
    outcome: Outcome, keys: Sequence[str], metrics: Sequence[Metric]
) -> Iterator[list[object]]:
    head = [*_head(outcome, keys), outcome.status]
    if not outcome.ok:
        yield [*head, "", "", "", outcome.reason]
    for split, measured in outcome.metrics.items():
        further = {one.name: one.in_results(measured) for one in metrics}
        for metric, value in {**measured, **further}.items():
            if value is not None:
                yield [*head, split, metric, repr(value), ""]


def write_timings(path: Path, outcomes: Sequence[Outcome], columns: Sequence[Column]) -> None:
    """Write what each run cost; empty where it failed or was not measured."""
    keys = _swept_keys(outcomes)
    header = ["run", "scheme", "seed", *keys, "status", *(column.name for column in columns)]
    rows = ([*_head(o, keys), o.status, *(c.written(o) for c in columns)] for o in outcomes)
    write_csv(path, header, rows)


def _swept_keys(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(key for outcome in outcomes for key in outcome.run.swept))


def _head(outcome: Outcome, keys: Sequence[str]) -> list[object]:
    run = outcome.run
    return [run.name, run.scheme, run.seed, *(run.swept.get(key, "") for key in keys)]


def write_summary(path: Path, summaries: Sequence[Summary]) -> None:
    """Write what is said of each scheme on each split; empty where there is nothing to say.

    The same seeds give the same bytes.
    """
    keys = _swept_keys(
        [outcome for one in summaries for row in one.rows for outcome in row.outcomes]
    )
    header = ["task", "scheme", *keys, "split", "metric", "seeds", "failed", "mean", "std"]
    header += ["ci_low", "ci_high", "standing", "baseline", "pairs", "difference"]
    header += ["difference_low", "difference_high", "p", "verdict"]
    rows = (
        [*_whose(summary, row, keys), split, summary.metric.name, *_said(summary, row, split)]
        for one in summaries
        for summary in (one, *one.further)
        for row in summary.rows
        for split in summary.splits
    )
    write_csv(path, header, rows)


def _whose(summary: Summary, row: Row, keys: Sequence[str]) -> list[object]:
    swept = row.outcomes[0].run.swept
    return [summary.task, row.scheme, *(swept.get(key, "") for key in keys)]


def _said(summary: Summary, row: Row, split: str) -> Iterator[object]:
    cell, base = row.cells[split], summary.base(row)
    seeds = len(cell.values)
    yield from (seeds, len(row.outcomes) - seeds)
    yield from (repr(cell.mean), repr(cell.std)) if seeds else ("", "")
    yield from map(repr, cell.interval) if cell.interval else ("", "")
    yield summary.standing(split).get(row.label, "")
    if base is None:
        yield from ("", "", "", "", "", "", "")
        return
    pair = summary.against(row, base, split)
    yield from (base.label, pair.seeds, repr(pair.mean) if pair.seeds else "")
    yield from map(repr, pair.interval) if pair.interval else ("", "")
    yield from ("" if pair.p is None else repr(pair.p), pair.verdict if pair.seeds else "")


def write_tuning(path: Path, picks: Sequence[Pick]) -> None:
    """Write every tuning run, one a line; the same seeds give the same bytes."""
    keys = list(picks[0].candidates[0].tried)
    header = ["run", "task", "scheme", *keys, "seed", "status", "split", "metric", "value"]
    rows = (row for pick in picks for row in _tuning_rows(pick))
    write_csv(path, [*header, "picked", "reason"], rows)


def _tuning_rows(pick: Pick) -> Iterator[list[object]]:
    for candidate in pick.candidates:
        chosen = "yes" if candidate is pick.picked else "no"
        for one in candidate.outcomes:
            run, metric = one.run, one.run.metric
            split = next(iter(one.metrics), "")
            value = repr(one.metrics[split][metric]) if split else ""
            head = [run.name, pick.task, pick.variant, *candidate.tried.values(), run.seed]
            yield [*head, one.status, split, metric if split else "", value, chosen, one.reason]
