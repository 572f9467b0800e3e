"""All files that are made from the runs' results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xcope.compare.report.charts import save_plots
from xcope.compare.report.findings import Findings
from xcope.compare.report.markdown import report
from xcope.compare.report.page import page
from xcope.compare.run.plan import folder_names
from xcope.compare.run.results import write_csv, write_results, write_timings
from xcope.compare.run.tuning import write_tuning
from xcope.compare.stats.summary import Row, Summary


def write(out: Path, found: Findings) -> None:
    """Write tables, plots and both reports to ``out``."""
    write_results(out / "results.csv", found.outcomes)
    write_timings(out / "timings.csv", found.outcomes)
    write_summary(out / "summary.csv", found.summaries)
    if found.picks:
        write_tuning(out / "tuning.csv", found.picks)
    names = folder_names([summary.task for summary in found.summaries])
    plots = [save_plots(one, out, name) for one, name in zip(found.summaries, names, strict=True)]
    for name, text in (("report.md", report(found, plots)), ("report.html", page(found))):
        # a path that is not UTF-8 may stand in the command
        (out / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def write_summary(path: Path, summaries: Sequence[Summary]) -> None:
    """Write what is said of each scheme on each split; empty where there is nothing to say.

    The same seeds give the same bytes.
    """
    header = ["task", "scheme", "split", "metric", "seeds", "failed", "mean", "std"]
    header += ["ci_low", "ci_high", "standing", "baseline", "pairs", "difference"]
    header += ["difference_low", "difference_high", "p", "verdict"]
    rows = (
        [summary.task, row.label, split, summary.metric, *_said(summary, row, split)]
        for summary in summaries
        for row in summary.rows
        for split in summary.splits
    )
    write_csv(path, header, rows)


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
