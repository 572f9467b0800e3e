"""`report.md`: what was asked, what came out, what it cost, and how to make it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xcope.compare.plan import as_text
from xcope.compare.summary import Row, Summary, seconds_text, spread_text, words
from xcope.config import Config, build_task

SETTINGS = {
    "model": ("dim", "depth", "heads"),
    "train": ("steps", "batch_size", "lr"),
    "evaluate": ("batches", "batch_size"),
}
PACKAGES = ("xcope", "torch", "x-transformers")


@dataclass(frozen=True)
class Circumstances:
    """How a comparison was run.

    Args:
        command: what to type to run it again.
        device: ``cpu`` or ``cuda``.
        jobs: runs side by side.
        threads: torch threads of each run.
    """

    command: str
    device: str
    jobs: int
    threads: int


def report(
    config: Config, summaries: Sequence[Summary], plots: Sequence[Sequence[str]], how: Circumstances
) -> str:
    """The report as Markdown.

    Args:
        plots: for each summary, the paths of its plots.
    """
    tasks = ", ".join(words(summary.task) for summary in summaries)
    blocks = [f"# Positional schemes on {tasks}", *_asked(config, summaries)]
    for summary, paths in zip(summaries, plots, strict=True):
        blocks += _task(summary, paths)
    blocks += [*_failures(summaries), *_again(how)]
    return "\n\n".join(blocks) + "\n"


def _asked(config: Config, summaries: Sequence[Summary]) -> Iterator[str]:
    runs = sum(len(row.outcomes) for summary in summaries for row in summary.rows)
    yield "## What was asked"
    yield f"{runs} runs, one for each combination of"
    yield "\n".join(
        f"- `{key}`: {', '.join(as_text(value) for value in values)}"
        for key, values in config.sweep.items()
    )
    yield "All else is the same in all of them (the rest is in [config.yaml](config.yaml)):"
    yield "\n".join(_settings(config))


def _settings(config: Config) -> Iterator[str]:
    for section, keys in SETTINGS.items():
        values = [
            f"{key} {as_text(getattr(getattr(config, section), key))}"
            for key in keys
            if f"{section}.{key}" not in config.sweep
        ]
        yield f"- `{section}`: {', '.join(values)}"


def _task(summary: Summary, plots: Sequence[str]) -> Iterator[str]:
    task = build_task(summary.rows[0].outcomes[0].run.config)
    lengths = [f"{words(split)} {task.seq_len(split)}" for split in ("train", *task.splits)]
    yield f"## Results on {words(summary.task)}"
    yield f"Tokens per sequence: {', '.join(lengths)}. Paper: {task.paper}."
    yield f"{summary.unit.capitalize()}, {spread_text(summary)}; lower is better."
    yield _table(summary)
    yield _notes(summary)
    for path in plots:
        yield f"![{words(Path(path).stem.replace('-', ', '))}]({path})"


def _table(summary: Summary) -> str:
    head = ["scheme", *map(words, summary.splits), "parameters", "seconds per run"]
    rule = [":--", *["--:"] * (len(head) - 1)]
    best = {split: summary.best(split) for split in summary.splits}
    lines = [head, rule, *(_line(summary, row, best) for row in summary.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(summary: Summary, row: Row, best: dict[str, frozenset[str]]) -> list[str]:
    cells = [
        f"**{summary.text(row, split)}**" if row.label in best[split] else summary.text(row, split)
        for split in summary.splits
    ]
    params = "-" if row.params is None else f"{row.params:,}"
    return [row.label, *cells, params, seconds_text(row.seconds)]


def _notes(summary: Summary) -> str:
    bold = (
        "**Bold**: the lowest of a column, and what cannot be told from it: what differs by no "
        "more than the last digit, or two standard errors (of means over seeds, and of shares "
        f"over {summary.sequences:,} test sequences). Nothing is bold where that holds for all."
    )
    few = " One seed says little about schemes that are close: another seed may swap them."
    return bold + (few if summary.seeds == 1 else "")


def _failures(summaries: Sequence[Summary]) -> Iterator[str]:
    failed = [
        outcome
        for summary in summaries
        for row in summary.rows
        for outcome in row.outcomes
        if not outcome.ok
    ]
    if failed:
        yield "## Failed runs"
        yield "\n".join(f"- `{o.run.name}`: {o.reason}" for o in failed)


def _again(how: Circumstances) -> Iterator[str]:
    yield "## Run it again"
    yield f"```\n{how.command}\n```"
    yield "\n".join(
        [
            f"- {', '.join(_versions())}",
            f"- device {how.device}; {how.jobs} runs at a time, torch threads of each: "
            f"{how.threads}; {platform.system()} on {platform.machine()}, {os.cpu_count()} cores",
            "- [results.csv](results.csv): every number; [timings.csv](timings.csv); "
            "[config.yaml](config.yaml): the sweep; `runs/`: each run's config, metrics, weights",
        ]
    )


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} (not installed)"
