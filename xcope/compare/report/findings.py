"""All that a comparison found, gathered for the reports, and what makes it fair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xcope.compare.report.columns import COLUMNS, Column
from xcope.compare.report.wording import words
from xcope.compare.run.plan import as_text
from xcope.compare.run.pool import Circumstances
from xcope.compare.run.results import Outcome
from xcope.compare.run.tuning import Pick
from xcope.compare.stats.summary import Row, Summary, bare_params
from xcope.config import Config
from xcope.training.metrics import Metric

FEW_SEEDS = 3


@dataclass(frozen=True)
class Findings:
    """What a comparison found.

    Args:
        outcomes: one per run, in the order of the sweep.
        summaries: one per task.
        picks: what was tuned, one for each task and scheme.
        asked: columns that are shown beside the usual ones.
    """

    config: Config
    outcomes: Sequence[Outcome]
    summaries: Sequence[Summary]
    picks: Sequence[Pick]
    how: Circumstances
    asked: Sequence[Column] = ()

    @property
    def metrics(self) -> list[Metric]:
        """Those that were asked for beside the headline metrics."""
        return list(dict.fromkeys(o.metric for one in self.summaries for o in one.further))

    @property
    def columns(self) -> list[Column]:
        """Those of the tables."""
        return [one for one in COLUMNS.values() if one.tabled or one in self.asked]

    @property
    def timings(self) -> list[Column]:
        """Those of ``timings.csv``."""
        return [one for one in COLUMNS.values() if one.timed or one in self.asked]

    @property
    def title(self) -> str:
        """``Positional schemes on flip flop, counting``."""
        return f"Positional schemes on {', '.join(words(one.task) for one in self.summaries)}"

    @cached_property
    def protocol(self) -> list[Statement]:
        """What makes it fair."""
        return protocol(self.config, self.summaries, self.picks)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that have no results, those of tuning not among them."""
        return tuple(one for one in self.outcomes if not one.ok)

    @property
    def failed_tuning(self) -> tuple[Outcome, ...]:
        """The tuning runs that have no results."""
        return tuple(one for pick in self.picks for c in pick.candidates for one in c.failed)

    @property
    def failures(self) -> str:
        """``2 runs failed, 1 tuning run failed``; empty where none did."""
        counts = [(len(self.failed), "run"), (len(self.failed_tuning), "tuning run")]
        return ", ".join(f"{n} {what}{'s' * (n > 1)} failed" for n, what in counts if n)


@dataclass(frozen=True)
class Statement:
    """One sentence of the protocol.

    Args:
        holds: False where the comparison departs from it.
    """

    holds: bool
    text: str


def protocol(
    config: Config, summaries: Sequence[Summary], picks: Sequence[Pick]
) -> list[Statement]:
    """What a reader has to know to trust the comparison, checked against the runs."""
    outcomes = [o for summary in summaries for row in summary.rows for o in row.finished]
    return [
        Statement(
            True,
            "Data: batch k of a training seed is the same under every scheme, and so are the "
            "initial weights of the seed except the scheme's own.",
        ),
        Statement(True, _test_data(config)),
        _steps(outcomes),
        _parameters(outcomes),
        *_rates(config, summaries, picks),
        _seeds(summaries),
        *_machines(outcomes),
    ]


def _test_data(config: Config) -> str:
    test = config.evaluate
    return (
        f"Test: every model is measured in float32 on the same {test.batches * test.batch_size:,} "
        f"sequences of each split (evaluate.seed {test.seed})."
    )


def _steps(outcomes: Sequence[Outcome]) -> Statement:
    made = sorted({(o.steps, o.run.config.train.batch_size) for o in outcomes})
    texts = [f"{steps:,} steps of {batch} sequences" for steps, batch in made]
    if len(made) > 1:
        return Statement(False, f"Steps: they differ between runs: {' and '.join(texts)}.")
    return Statement(True, f"Steps: {''.join(texts) or 'no run has results'}, in every run.")


def _parameters(outcomes: Sequence[Outcome]) -> Statement:
    configs = {repr((o.run.config.model, o.run.config.task)): o.run.config for o in outcomes}
    counts = set(map(bare_params, configs.values()))
    known = sorted(count for count in counts if count is not None)
    if len(counts) == 1 and known:
        return Statement(
            True,
            f"Parameters: the model without a scheme has {known[0]:,}; what a scheme has beside "
            "them is in the column of its own.",
        )
    shown = ", ".join(f"{count:,}" for count in known) or "unknown"
    return Statement(
        len(outcomes) == 0, f"Parameters: the models without a scheme differ in size: {shown}."
    )


def _rates(
    config: Config, summaries: Sequence[Summary], picks: Sequence[Pick]
) -> Iterator[Statement]:
    """Whether each scheme had values, such as a learning rate, that suit it."""
    tune = config.tune
    if tune is not None:
        grid = "; ".join(f"{key} among {_list(values)}" for key, values in tune.grid.items())
        steps = "" if tune.steps is None else f", in runs of {tune.steps:,} steps"
        yield Statement(
            True,
            f"Tuning: {grid}, picked for each scheme and task by the headline metric in "
            f"distribution on training seeds {_list(tune.seeds)} and data seed "
            f"{tune.evaluate_seed}, none of which is of the test{steps}.",
        )
        edge = [f"{pick.variant} ({pick.task})" for pick in picks if pick.at_edge]
        if edge:
            yield Statement(
                False,
                f"The value picked is the end of the grid, and one beyond may be better: "
                f"{', '.join(edge)}.",
            )
    for summary in summaries:
        if len(summary.best) < len(summary.rows):
            yield Statement(
                False,
                f"Of each scheme on {words(summary.task)} the best {summary.swept} "
                f"{words(summary.splits[0])} is compared, chosen on the test sequences; tune "
                "chooses on others.",
            )
            edge = [row.spoken for row in summary.best if _at_end(summary, row)]
            if edge:
                yield Statement(
                    False,
                    "The best value is the end of what was swept, and one beyond may be better: "
                    f"{', '.join(edge)} ({words(summary.task)}).",
                )
    if not {"train.lr"} & {*config.sweep, *(tune.grid if tune else ())}:
        yield Statement(
            False,
            f"Learning rate: {config.train.lr:g} for all, not picked for each scheme (tune does): "
            "a scheme that another rate suits is worse off.",
        )


def _at_end(summary: Summary, row: Row) -> bool:
    """Whether a number that is swept beside the scheme is the least or the largest at a row."""
    for key, text in row.others.items():
        try:
            tried = {float(one.others[key]) for one in summary.rows}
        except ValueError:
            continue
        if len(tried) > 1 and float(text) in (min(tried), max(tried)):
            return True
    return False


def _seeds(summaries: Sequence[Summary]) -> Statement:
    least = min((summary.seeds for summary in summaries), default=0)
    if least >= FEW_SEEDS:
        return Statement(True, f"Seeds: {least} of each scheme.")
    return Statement(False, f"Seeds: {least} of each scheme; fewer than {FEW_SEEDS} say little.")


def _machines(outcomes: Sequence[Outcome]) -> Iterator[Statement]:
    """Departures: what differs between the machines that runs ran on."""
    for key, name in (("device", "Device"), ("threads", "Threads"), ("torch", "PyTorch")):
        values = sorted({str(o.timing[key]) for o in outcomes if key in o.timing})
        if len(values) > 1:
            yield Statement(
                False,
                f"{name}: not the same in all runs ({', '.join(values)}), so times compare badly.",
            )


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(as_text, values))
