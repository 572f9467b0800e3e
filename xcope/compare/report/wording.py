"""Words of the reports: names, and what a reader has to know about the numbers of one task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xcope.compare.report.columns import Column
from xcope.compare.stats.inference import LEAST_SEEDS, smallest_p
from xcope.compare.stats.summary import Summary
from xcope.training.metrics import NOTHING

EXACT_SEEDS = 6
"""Fewer pairs than that cannot give a p of 0.05 or less in the exact test."""
FEW = 10
"""Fewer values than that make a bootstrap interval clearly too narrow."""


def words(name: str) -> str:
    """A name as people write it: ``in_distribution`` → ``in distribution``; options stay."""
    head, bracket, options = name.partition("(")
    return head.replace("_", " ") + bracket + options


def sentence(text: str) -> str:
    """A text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def p_text(p: float | None) -> str:
    """``0.25``, ``0.031``: two significant digits; ``-`` for None."""
    if p is None:
        return NOTHING
    return f"{p:.2f}" if p >= 0.1 else f"{p:.2g}" if p >= 0.0001 else "<0.0001"


def about_results(summary: Summary) -> Iterator[str]:
    """For the table of results."""
    first, best = {"lower": ("Lower", "lowest"), "higher": ("Higher", "highest")}[
        summary.metric.better
    ]
    if summary.seeds < LEAST_SEEDS:
        few = "one seed there is no interval and" if summary.seeds == 1 else "2 seeds there is"
        yield (
            f"{first} is better. Nothing is marked as best: with {few} no test, and another seed "
            "may swap schemes."
        )
    else:
        yield (
            f"{first} is better. Best is the {best} of a column; tied is what is not "
            "distinguishable from it by the test below, seed by seed. Nothing is marked where that "
            "holds for all."
        )
    if summary.seeds > 1:
        yield f"In brackets: the 95 % bootstrap interval of the mean over seeds{_narrow(summary)}."


def _narrow(summary: Summary) -> str:
    n = summary.seeds
    if n <= 3:
        return (
            f"; with {n} it is their range, which holds the true mean of a symmetric distribution "
            f"in {2 ** (n - 1) - 1} of {2 ** (n - 1)} cases, not in 19 of 20"
        )
    return f"; from {n} values it comes out too narrow" if n < FEW else ""


def _resolution(summary: Summary) -> str:
    if not summary.metric.share:
        return "the last digit"
    return (
        "the last digit, or what the choice of test sequences adds (two standard errors of a share "
        f"of {summary.sequences:,})"
    )


def about_test(summary: Summary) -> Iterator[str]:
    """For the table of differences to the baseline, the most important first; nothing with one
    seed."""
    n = summary.seeds
    if n < 2:
        return
    least = f"With {n} seeds the sign-flip test cannot give less than {p_text(smallest_p(n))}"
    few = ""
    if n < LEAST_SEEDS:
        few = f" {least}, and nothing is said to be better or worse: {LEAST_SEEDS} are needed."
    elif n < EXACT_SEEDS:
        few = f" {least}: by itself it shows nothing, and better or worse rests on the t-test."
    side = "Below" if summary.metric.better == "lower" else "Above"
    yield f"{side} 0 the scheme is better than the baseline.{few}"
    yield (
        "Differences are taken seed by seed. In brackets: the 95 % t-interval of their mean, and p "
        "that of the same t-test, which takes them for normal; then the p of the exact two-sided "
        "sign-flip test, which does not."
    )
    yield (
        "Better and worse are said only where the interval leaves out 0, the sign-flip test gives "
        "at most 0.05 or the least that so few seeds can give, and the mean difference is more "
        f"than {_resolution(summary)}. All else is not distinguishable."
    )
    yield (
        "There is no correction for the number of comparisons: up to one in twenty between equal "
        "schemes comes out as a difference."
    )


def about_costs(summary: Summary, columns: Sequence[Column]) -> Iterator[str]:
    """For the columns of costs."""
    finished = [outcome for row in summary.rows for outcome in row.finished]
    for column in columns:
        if note := column.note(finished):
            yield note
    yield "× compares with the baseline, over the seeds that both have."
