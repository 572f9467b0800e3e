"""`report.md`: what was asked, what came out, what it cost, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xcope.compare.report import tables
from xcope.compare.report.findings import Findings
from xcope.compare.report.tables import Td
from xcope.compare.report.wording import about_costs, about_results, about_test, words
from xcope.compare.run.plan import as_text
from xcope.compare.run.tuning import Candidate, Pick
from xcope.compare.stats.summary import Summary, spread_text
from xcope.config import Config, build_task
from xcope.environment import versions
from xcope.markdown import bold, code_block, escape, page, table
from xcope.training.metrics import NOTHING

SETTINGS = {
    "model": ("dim", "depth", "heads"),
    "train": ("steps", "batch_size", "lr"),
    "evaluate": ("batches", "batch_size"),
}


def report(found: Findings, plots: Sequence[Sequence[str]]) -> str:
    """The report as Markdown.

    Args:
        plots: for each summary, the paths of its plots.
    """
    blocks = [
        f"# {escape(found.title)}",
        *_asked(found),
        *_protocol(found),
        *_tuning(found.picks),
    ]
    for summary, paths in zip(found.summaries, plots, strict=True):
        blocks += _task(found, summary, paths)
    blocks += [*_failures(found), *_again(found)]
    return page(blocks)


def _asked(found: Findings) -> Iterator[str]:
    yield "## What was asked"
    yield f"{len(found.outcomes)} runs, one for each combination of"
    yield "\n".join(
        f"- `{key}`: {', '.join(escape(as_text(value)) for value in values)}"
        for key, values in found.config.sweep.items()
    )
    yield "All else is the same in all of them (the rest is in [config.yaml](config.yaml)):"
    yield "\n".join(settings(found.config))


def settings(config: Config) -> Iterator[str]:
    """The most telling keys that are neither swept nor tuned, a line for each section."""
    varied = {*config.sweep, *(config.tune.grid if config.tune else ())}
    for section, keys in SETTINGS.items():
        values = [
            f"{key} {as_text(getattr(getattr(config, section), key))}"
            for key in keys
            if f"{section}.{key}" not in varied
        ]
        yield f"- `{section}`: {', '.join(values)}"


def _protocol(found: Findings) -> Iterator[str]:
    yield "## What makes it fair"
    yield "\n".join(
        f"- {'' if statement.holds else '**Note.** '}{statement.text}"
        for statement in found.protocol
    )


def _tuning(picks: Sequence[Pick]) -> Iterator[str]:
    if not picks:
        return
    keys = list(picks[0].candidates[0].tried)
    yield "## What tuning picked"
    yield "The headline metric in distribution, mean over the tuning seeds; **bold**: picked."
    lines = [
        [*map(escape, (pick.task, pick.variant)), *_tried(one, picked=one is pick.picked)]
        for pick in picks
        for one in pick.candidates
    ]
    yield table(["task", "scheme", *keys, "validation"], lines, align="llr")


def _tried(one: Candidate, *, picked: bool) -> list[str]:
    texts = [*map(escape, one.tried.values()), score_text(one)]
    return list(map(bold, texts)) if picked else texts


def score_text(candidate: Candidate) -> str:
    """``12.3``, or ``failed``."""
    return "failed" if candidate.failed else candidate.metric.text(candidate.score)


def _task(found: Findings, summary: Summary, plots: Sequence[str]) -> Iterator[str]:
    task = build_task(summary.rows[0].outcomes[0].run.config)
    lengths = [f"{words(split)} {task.seq_len(split)}" for split in ("train", *summary.splits)]
    yield f"## Results on {escape(words(summary.task))}"
    yield f"Tokens per sequence: {', '.join(lengths)}. Paper: {task.paper}."
    yield f"{_capital(summary.metric.heading)}, {spread_text(summary)}."
    head, rows = tables.results(summary, found.columns)
    yield table(head, map(results_row, rows), align="lr")
    notes = [*about_results(summary), *about_costs(summary, found.columns)]
    yield " ".join(["**Bold**: best and tied.", *notes])
    yield from _differences(summary, "Against")
    for one in summary.further:
        yield f"### {_capital(one.metric.heading)}"
        head, rows = tables.results(one, ())
        yield table(head, map(results_row, rows), align="lr")
        yield " ".join(["**Bold**: best and tied.", *about_results(one)])
        yield from _differences(one, f"{_capital(one.metric.heading)}, against")
    for path in plots:
        yield f"![{words(Path(path).stem.replace('-', ', '))}]({path})"


def results_row(row: Sequence[Td]) -> list[str]:
    """A row of the table of results, its cells as Markdown."""
    label, *cells = row
    return [escape(label.text), *map(_result, cells)]


def _result(cell: Td) -> str:
    text = f"{cell.text} {cell.beside}".rstrip()
    return "<br>".join([bold(text) if cell.mark else text, *cell.below])


def _differences(summary: Summary, against: str) -> Iterator[str]:
    head, rows = tables.differences(summary)
    if rows:
        names = ", ".join(map(escape, tables.baselines(summary)))
        yield f"### {against} {names}"
        lines = [[escape(label.text), *map(_difference, cells)] for label, *cells in rows]
        yield table(head, lines, align="lr")
        yield " ".join(about_test(summary))


def _difference(cell: Td) -> str:
    """``−3.1 [−4.2, −2.0], p 0.25``, and the verdict in a second line."""
    return f"{cell.text} {', '.join(cell.below)}<br>{cell.mark}" if cell.mark else NOTHING


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _failures(found: Findings) -> Iterator[str]:
    if failed := [*found.failed, *found.failed_tuning]:
        yield "## Failed runs"
        yield "\n".join(f"- `{o.run.name}`: {escape(o.reason)}" for o in failed)


def _again(found: Findings) -> Iterator[str]:
    yield "## Run it again"
    yield code_block(found.how.command)
    tuning = "; [tuning.csv](tuning.csv)" if found.picks else ""
    yield "\n".join(
        [
            f"- {versions()}",
            f"- {found.how.machine}",
            "- [report.html](report.html): the same as one page, with every run's config; "
            "[summary.csv](summary.csv): means, intervals, tests; [results.csv](results.csv): "
            f"every number; [timings.csv](timings.csv){tuning}; [config.yaml](config.yaml): the "
            "sweep; `runs/`: each run's config, metrics, weights",
        ]
    )
