"""`report.md`: what was asked, what came out, what it cost, and how to make it again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xcope.compare.report import wording
from xcope.compare.report.findings import Findings
from xcope.compare.report.notes import about_costs, about_results, about_test
from xcope.compare.report.wording import NOTHING, interval_text, markdown, words
from xcope.compare.run.plan import as_text
from xcope.compare.run.tuning import Candidate, Pick
from xcope.compare.stats.costs import costs
from xcope.compare.stats.summary import Row, Summary, spread_text
from xcope.config import Config, build_task
from xcope.environment import versions

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
        f"# {markdown(found.title)}",
        *_asked(found),
        *_protocol(found),
        *_tuning(found.picks),
    ]
    for summary, paths in zip(found.summaries, plots, strict=True):
        blocks += _task(summary, paths)
    blocks += [*_failures(found), *_again(found)]
    return "\n\n".join(blocks) + "\n"


def _asked(found: Findings) -> Iterator[str]:
    yield "## What was asked"
    yield f"{len(found.outcomes)} runs, one for each combination of"
    yield "\n".join(
        f"- `{key}`: {', '.join(markdown(as_text(value)) for value in values)}"
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
        [*map(markdown, (pick.task, pick.variant)), *_tried(one, picked=one is pick.picked)]
        for pick in picks
        for one in pick.candidates
    ]
    yield _table(["task", "scheme", *keys, "validation"], lines, left=2)


def _tried(one: Candidate, *, picked: bool) -> list[str]:
    texts = [*map(markdown, one.tried.values()), score_text(one)]
    return list(map(_bold, texts)) if picked else texts


def score_text(candidate: Candidate) -> str:
    """``12.3``, or ``failed``."""
    if candidate.failed:
        return "failed"
    return wording.number(candidate.score, candidate.outcomes[0].run.metric)


def _task(summary: Summary, plots: Sequence[str]) -> Iterator[str]:
    task = build_task(summary.rows[0].outcomes[0].run.config)
    lengths = [f"{words(split)} {task.seq_len(split)}" for split in ("train", *summary.splits)]
    yield f"## Results on {markdown(words(summary.task))}"
    yield f"Tokens per sequence: {', '.join(lengths)}. Paper: {task.paper}."
    yield f"{summary.unit.capitalize()}, {spread_text(summary)}."
    head = ["scheme", *map(words, summary.splits), "parameters (own)", "seconds", "memory, MB"]
    yield _table(head, [_line(summary, row) for row in summary.rows])
    yield " ".join(["**Bold**: best and tied.", *about_results(summary), *about_costs(summary)])
    yield from _differences(summary)
    for path in plots:
        yield f"![{words(Path(path).stem.replace('-', ', '))}]({path})"


def _line(summary: Summary, row: Row) -> list[str]:
    return [
        markdown(row.label),
        *(_cell(summary, row, split) for split in summary.splits),
        *_costs(summary, row),
    ]


def _cell(summary: Summary, row: Row, split: str) -> str:
    mark, ends = summary.standing(split).get(row.label), row.cells[split].interval
    text = summary.text(row, split)
    below = f"<br>{interval_text(ends, summary.metric)}" if ends else ""
    return (_bold(text) if mark else text) + below


def _costs(summary: Summary, row: Row) -> list[str]:
    cost = costs(summary, row)
    own = NOTHING if cost.own is None else f"{cost.own:+,}".replace("+0", "0")
    return [
        f"{wording.count_text(cost.params)} ({own})",
        f"{wording.seconds_text(cost.seconds)} ({wording.ratio_text(cost.time)})",
        f"{wording.megabytes_text(cost.peak_bytes)} ({wording.ratio_text(cost.memory)})",
    ]


def _differences(summary: Summary) -> Iterator[str]:
    pairs = [(row, base) for row in summary.rows if (base := summary.base(row))]
    if summary.seeds < 2 or not pairs:
        return
    names = dict.fromkeys(base.label for _, base in pairs)
    yield f"### Against {', '.join(map(markdown, names))}"
    head = ["scheme", *map(words, summary.splits)]
    yield _table(
        head,
        [
            [markdown(row.label), *(difference_text(summary, row, base, s) for s in summary.splits)]
            for row, base in pairs
        ],
    )
    yield " ".join(about_test(summary))


def difference_text(summary: Summary, row: Row, base: Row, split: str) -> str:
    """``−3.1 [−4.2, −2.0], p 0.25: better``; ``-`` where no two seeds can be compared."""
    pair = summary.against(row, base, split)
    if pair.interval is None:
        return NOTHING
    ends = interval_text(pair.interval, summary.metric, signs=True)
    text = f"{wording.signed(pair.mean, summary.metric)} {ends}, p {wording.p_text(pair.p)}"
    return f"{text}<br>{pair.verdict}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    rule = [":--"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def _bold(text: str) -> str:
    return f"**{text}**"


def _failures(found: Findings) -> Iterator[str]:
    if found.failed:
        yield "## Failed runs"
        yield "\n".join(f"- `{o.run.name}`: {markdown(o.reason)}" for o in found.failed)


def _again(found: Findings) -> Iterator[str]:
    yield "## Run it again"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", found.how.command)), default=0))
    yield f"{fence}\n{found.how.command}\n{fence}"
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
