"""The answer of a comparison: a sentence for each split, and no more than its test shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from xcope.compare.report.tables import baseline
from xcope.compare.report.wording import sentence, words
from xcope.compare.stats.inference import LEAST_SEEDS
from xcope.compare.stats.summary import Row, Summary, spread_text

MOST_NAMES = 6
"""Of rows that are listed for one thing that is said of them."""


@dataclass(frozen=True)
class Answer:
    """A sentence on a split: ``split: lead strong rest``.

    Args:
        strong: the row that others were shown to be worse than; empty where none was.
    """

    split: str
    lead: str
    strong: str
    rest: str

    @property
    def text(self) -> str:
        """The sentence in one piece."""
        strong = f" {self.strong}" if self.strong else ""
        return f"{self.split}: {self.lead}{strong}{self.rest}"


def answers(summary: Summary) -> list[Answer]:
    """A sentence for each split; of each scheme the row that is `Summary.best` is spoken of."""
    among = replace(summary, rows=summary.best)
    return [_answer(summary, among, split) for split in summary.splits]


def terminal_answer(summary: Summary) -> Text:
    """The sentences of a task for the terminal."""
    shown = Text(f"{sentence(words(summary.task))}. {' '.join(about_answers(summary))}")
    for one in answers(summary):
        shown.append(f"\n  {one.split}: {one.lead}")
        shown.append(f" {one.strong}" if one.strong else "", "bold")
        shown.append(one.rest)
    return shown


def about_answers(summary: Summary) -> Iterator[str]:
    """What holds for all these sentences."""
    heading = sentence(summary.metric.heading)
    yield f"{heading}, {spread_text(summary)}; {summary.metric.better} is better."
    if len(summary.best) > 1 and summary.seeds < LEAST_SEEDS:
        few = "One seed is" if summary.seeds == 1 else f"{summary.seeds} seeds are"
        yield (
            f"{few} too few to tell schemes apart: the order may be chance. "
            f"From {LEAST_SEEDS} on there is a test."
        )
    if len(summary.best) < len(summary.rows):
        yield about_best(summary)


def about_best(summary: Summary) -> str:
    """Which row of a scheme stands for it, and what that is worth."""
    return (
        f"Of each scheme the {summary.swept} that does best {words(summary.splits[0])} stands for "
        "it. It was chosen on the test sequences, which flatters it a little (tune chooses on "
        "others)."
    )


def _answer(summary: Summary, among: Summary, split: str) -> Answer:
    rows = among.ranked(split)
    failed = [row for row in among.rows if row not in rows]
    end = f"; without a result: {_listed([row.spoken for row in failed])}" if failed else ""
    name = sentence(words(split))
    if not rows:
        return Answer(name, "no run has a result", "", ".")
    best, *others = rows

    def figure(row: Row) -> str:
        return f"{row.spoken} ({summary.text(row, split)})"

    if not others:
        return Answer(name, figure(best), "", f", with nothing to compare it with{end}.")
    if among.seeds < LEAST_SEEDS:
        first = {"lower": "lowest", "higher": "highest"}[among.metric.better]
        then = _listed([figure(row) for row in others])
        return Answer(name, f"{first} is {figure(best)}", "", f", then {then}{end}.")
    pairs = {row.label: among.against(row, best, split) for row in others}
    groups: dict[str, list[Row]] = {}
    for row in others:
        groups.setdefault(pairs[row.label].verdict, []).append(row)
    alike, worse = groups.get("not distinguishable", []), groups.get("worse", [])
    rest = end
    if unknown := groups.get("too few seeds"):
        rest = f"; too few seeds to tell: {_listed(map(figure, unknown))}{end}"
    if worse:
        by = []
        for row in worse:
            low, high = sorted(map(abs, pairs[row.label].interval or ()))
            less = among.metric.text(abs(pairs[row.label].mean))
            ends = f"{among.metric.text(low)} to {among.metric.text(high)}"
            by.append(f"{row.spoken} by {less} ({ends})")
        rest = f"; worse: {_listed(by)}{rest}"
    versus = _against_baseline(summary, among, best, split)
    if not worse:
        shown = [best, *alike]
        lead = "not distinguishable: " if alike else ""
        return Answer(name, f"{lead}{_listed(map(figure, shown))}", "", f"{rest}{versus}.")
    if alike:
        rest = f"; not distinguishable from it: {_listed(map(figure, alike))}{rest}"
    text = f" ({summary.text(best, split)})"
    return Answer(name, "best:", best.spoken, f"{text}{rest}{versus}.")


def _against_baseline(summary: Summary, among: Summary, best: Row, split: str) -> str:
    """How rows stand to the baseline that was asked for, unless that is the best."""
    if summary.baseline is None:
        return ""
    said: dict[str, list[str]] = {}
    for row in among.rows:
        base = summary.base(row)
        if base is best:
            return ""
        # how the best stands to a row beside it was said
        if base is not None and not (row is best and base in among.rows):
            verdict = summary.against(row, base, split).verdict
            said.setdefault(verdict, []).append(row.spoken)
    parts = [f"{v}: {_listed(said[v])}" for v in ("better", "worse") if v in said]
    return f". Against {baseline(summary)}, {'; '.join(parts)}" if parts else ""


def _listed(names: Sequence[str] | Iterator[str]) -> str:
    every = list(names)
    shown, more = every[:MOST_NAMES], len(every) - MOST_NAMES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
