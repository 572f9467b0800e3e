"""`report.md`: what was asked, what came out, what it cost, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xcope.compare.report import tables
from xcope.compare.report.answer import about_answers, about_best, answers
from xcope.compare.report.columns import Column
from xcope.compare.report.findings import Findings
from xcope.compare.report.tables import Td
from xcope.compare.report.wording import (
    about_costs,
    about_results,
    about_test,
    sentence,
    words,
)
from xcope.compare.run.plan import as_text
from xcope.compare.run.tuning import Candidate, Pick
from xcope.compare.stats.inference import LEAST_SEEDS
from xcope.compare.stats.summary import Row, Summary, spread_text
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
        *_answers(found),
        *_asked(found),
        *_protocol(found),
        *_tuning(found.picks),
    ]
    for summary, paths in zip(found.summaries, plots, strict=True):
        blocks += _task(found, summary, paths)
    blocks += [*_failures(found), *_again(found)]
    return page(blocks)


def _answers(found: Findings) -> Iterator[str]:
    yield "## The answer"
    for summary in found.summaries:
        about = " ".join(about_answers(summary))
        yield f"{escape(sentence(words(summary.task)))}. {escape(about)}"
        yield "\n".join(
            f"- {escape(f'{one.split}: {one.lead}')}"
            f"{f' **{escape(one.strong)}**' if one.strong else ''}{_end(one.rest)}"
            for one in answers(summary)
        )
    if found.failures:
        yield f"{sentence(found.failures)}; [why](#failed-runs)."


def _end(text: str) -> str:
    """The end of a sentence, escaped without its first space."""
    return f"{' ' * text.startswith(' ')}{escape(text)}"


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
    yield f"{sentence(summary.metric.heading)}, {spread_text(summary)}."
    yield from _tables(summary, found.columns, "Against")
    for one in summary.further:
        heading = sentence(one.metric.heading)
        yield f"### {heading}"
        yield from _tables(one, (), f"{heading}, against")
    for path in plots:
        yield f"![{words(Path(path).stem.replace('-', ', '))}]({path})"


def _tables(summary: Summary, columns: Sequence[Column], against: str) -> Iterator[str]:
    """Results and differences of the best row of each scheme; then of all, folded."""
    notes = [*about_results(summary), *about_costs(summary, columns)]
    if summary.seeds >= LEAST_SEEDS:
        notes.insert(0, "**Bold**: best and tied.")
    parts = [(_results(summary, columns, summary.best), _differences(summary, summary.best))]
    if len(summary.best) < len(summary.rows):
        notes.insert(0, about_best(summary))
        parts.append(
            (_results(summary, columns, summary.rows), _differences(summary, summary.rows))
        )
    (results, differences), *every = parts
    yield results
    yield " ".join(notes)
    base = escape(tables.baseline(summary))
    if differences:
        yield f"### {against} {base}"
        yield differences
        yield " ".join(about_test(summary))
    for results, differences in every:
        yield f"<details><summary>Every {summary.swept} of each scheme</summary>"
        yield results
        if differences:
            yield f"Against {base}:"
            yield differences
        yield "</details>"


def _results(summary: Summary, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    head, body = tables.results(summary, columns, rows)
    return table(head, map(results_row, body), align="lr")


def results_row(row: Sequence[Td]) -> list[str]:
    """A row of the table of results, its cells as Markdown."""
    label, *cells = row
    return [escape(label.text), *map(_result, cells)]


def _result(cell: Td) -> str:
    text = f"{cell.text} {cell.beside}".rstrip()
    return "<br>".join([bold(text) if cell.mark else text, *cell.below])


def _differences(summary: Summary, rows: Sequence[Row]) -> str:
    head, body = tables.differences(summary, rows)
    lines = [[escape(label.text), *map(_difference, cells)] for label, *cells in body]
    return table(head, lines, align="lr") if lines else ""


def _difference(cell: Td) -> str:
    """``−3.1 [−4.2, −2.0], p 0.25``, and the verdict in a second line."""
    return f"{cell.text} {', '.join(cell.below)}<br>{cell.mark}" if cell.mark else NOTHING


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
