"""What is measured: a metric is one record, which results, tables, reports and plots all read.

To add a metric, `register` its record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor

from xcope.errors import FlagError, did_you_mean, listing
from xcope.registry import add
from xcope.tasks import IGNORE, Task

BINS = 64
"""The most bins of a curve over positions."""
NOTHING = "-"
"""What tables show where there is no number."""


@dataclass(frozen=True)
class Answers:
    """What a model says on a batch.

    Args:
        logits: (b n num_tokens).
        targets: (b n) with `IGNORE` where nothing is scored.
        bytes: (b n): bytes of text that each target stands for; None where that is not counted.
    """

    logits: Tensor
    targets: Tensor
    bytes: Tensor | None = None

    @cached_property
    def scored(self) -> Tensor:
        """Which tokens count, (b n) bool."""
        return self.targets != IGNORE

    @cached_property
    def losses(self) -> Tensor:
        """Cross entropy in nats, (b n) float32."""
        logits = self.logits.float().transpose(1, 2)
        return F.cross_entropy(logits, self.targets, ignore_index=IGNORE, reduction="none")

    @cached_property
    def wrong(self) -> Tensor:
        """Where another token than the target is the likeliest, (b n) bool."""
        return self.scored & (self.logits.argmax(dim=-1) != self.targets)


def _as_it_is(mean: float) -> float:
    return mean


def _everywhere(task: Task) -> bool:
    return True


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is on a split, and how it is written.

    Args:
        name: in ``results.json``, in CSV files and for ``--show``.
        of: gives a number of each token, (b n), or of each sequence, (b); the metric is the mean
            of those that are scored. None: there is none in such a batch. Or the name of another
            metric: this one follows from it, is computed where it is asked for, and is stored only
            where it is a task's headline.
        then: makes the metric of that mean, or of that other metric.
        per: a metric of each token by whose sum that of ``of`` is divided, where it is counted.
        better: ``"lower"`` or ``"higher"``.
        share: it lies between 0 and 1 and is shown in per cent.
        unit: words after its name in headings.
        digits: decimals that reports show (of per cent for shares).
        fits: whether it says something about a task; tables leave it out where it does not.
    """

    name: str
    of: Callable[[Answers], Tensor | None] | str
    then: Callable[[float], float] = _as_it_is
    per: str | None = None
    better: Literal["lower", "higher"] = "lower"
    share: bool = False
    unit: str = ""
    digits: int = 3
    fits: Callable[[Task], bool] = _everywhere

    @property
    def words(self) -> str:
        """The name as people write it: ``sequence error``."""
        return self.name.replace("_", " ")

    @property
    def heading(self) -> str:
        """``error, %``, ``loss, nats``, ``bits per byte``."""
        unit = "%" if self.share else self.unit
        return f"{self.words}, {unit}" if unit else self.words

    @property
    def last_digit(self) -> float:
        """What the last digit of `text` stands for."""
        return (0.01 if self.share else 1.0) * 10.0**-self.digits

    def text(self, value: float, more: int = 0) -> str:
        """A value without its unit: ``12.3``, ``−0.012``.

        Args:
            more: decimals beyond `digits`.
        """
        text = f"{100 * value if self.share else value:.{self.digits + more}f}"
        return text.replace("-", "−")

    def signed(self, value: float) -> str:
        """A difference: ``+3.1``, ``−0.012``; no sign where only zeros are shown."""
        text = self.text(value)
        if not text.strip("−0."):
            return text.removeprefix("−")
        return text if value < 0 else f"+{text}"

    def interval(self, ends: tuple[float, float], *, signs: bool = False) -> str:
        """``[11.9, 12.7]``; with ``signs`` ``[−0.4, +0.4]``."""
        low, high = map(self.signed if signs else self.text, ends)
        return f"[{low}, {high}]"

    def rank(self, value: float) -> float:
        """The value, turned so that lower is better."""
        return value if self.better == "lower" else -value

    def in_results(self, metrics: Mapping[str, float]) -> float | None:
        """Its value on a split of a finished run; None where an older run did not measure it."""
        if self.name in metrics:
            return metrics[self.name]
        if not isinstance(self.of, str) or self.of not in metrics:
            return None
        return self.then(metrics[self.of] / metrics.get(self.per or "", 1.0))


METRICS: dict[str, Metric] = {}
"""Name → metric, in the order of columns and lines."""


def register(metric: Metric) -> Metric:
    """Add a metric.

    Raises:
        FlagError: the name is taken.
        ValueError: it follows from a metric that is not counted.
    """
    if isinstance(metric.of, str) and not callable(metric_called(metric.of).of):
        raise ValueError(f"metric {metric.name!r} follows from {metric.of!r}, which is not counted")
    add(METRICS, metric.name, metric, "metric")
    return metric


def metric_called(name: str) -> Metric:
    """The metric of a name.

    Raises:
        FlagError: there is none.
    """
    if name not in METRICS:
        raise FlagError(
            "metric",
            f"there is no metric {name!r}: choose among {listing(METRICS)}"
            f"{did_you_mean(name, METRICS)}",
        )
    return METRICS[name]


def _all_is_text(task: Task) -> bool:
    return task.metric == "bits_per_byte"


def _some_tokens_are_scored(task: Task) -> bool:
    """Where all text is scored no sequence is without an error."""
    return not _all_is_text(task)


LOSS = register(Metric("loss", lambda answers: answers.losses, unit="nats"))
ERROR = register(Metric("error", lambda answers: answers.wrong, share=True, digits=1))
register(
    Metric(
        "sequence_error",
        lambda answers: answers.wrong.any(dim=-1),
        share=True,
        digits=1,
        fits=_some_tokens_are_scored,
    )
)
BYTES = register(
    Metric(
        "bytes_per_token", lambda answers: answers.bytes, better="higher", digits=2,
        fits=_all_is_text,
    )
)  # fmt: skip
BITS_PER_BYTE = register(
    Metric(
        "bits_per_byte",
        "loss",
        then=lambda loss: loss / math.log(2),
        per=BYTES.name,  # where tokens are bytes nothing is counted
        fits=_all_is_text,
    )
)
register(
    Metric(
        "sequence_accuracy",
        "sequence_error",
        then=lambda error: 1 - error,
        better="higher",
        share=True,
        digits=1,
        fits=_some_tokens_are_scored,
    )
)


class Tally:
    """Sums over batches of sequences of one length, and the metrics that follow from them."""

    def __init__(self) -> None:
        self._sequences = 0
        self._scored = torch.zeros((), dtype=torch.int64)  # how often each position was, (n)
        self._sums: dict[str, Tensor] = {}  # metric → float64, of each position (n) or of all ()

    def add(self, logits: Tensor, targets: Tensor, bytes: Tensor | None = None) -> None:
        """Count a batch: logits (b n num_tokens), targets (b n) with `IGNORE` where not scored, and
        the bytes that each target stands for, (b n)."""
        answers = Answers(logits, targets, bytes)
        sequences = answers.scored.any(dim=-1)
        self._sequences += int(sequences.sum())
        self._scored = self._scored + answers.scored.sum(dim=0).cpu()
        for one in METRICS.values():
            if isinstance(one.of, str):
                continue
            values = one.of(answers)
            if values is None:
                continue
            if values.shape not in (targets.shape, sequences.shape):
                raise ValueError(
                    f"metric {one.name!r} gives {tuple(values.shape)} for targets of shape "
                    f"{tuple(targets.shape)}: give a number for each token or each sequence"
                )
            scored = answers.scored if values.shape == targets.shape else sequences
            values = torch.where(scored, values, 0)
            # whole numbers are summed where they are; not every device has float64
            values = values.cpu().double() if values.is_floating_point() else values
            total = values.sum(dim=0).cpu().double()
            self._sums[one.name] = self._sums.get(one.name, torch.zeros(())) + total

    @property
    def loss(self) -> float:
        """The sum of the loss over all scored tokens."""
        return self._sums[LOSS.name].sum().item()

    def metrics(self, task: Task) -> dict[str, float]:
        """Metric → value, of every metric that is counted and of the task's headline metric."""
        if not self._scored.any():
            raise ValueError(f"task {task.name!r} scored no token in the batches it gave")
        chosen = [o for o in METRICS.values() if o.name in self._sums or o.name == task.metric]
        return {one.name: self._value(one) for one in chosen}

    def _value(self, metric: Metric) -> float:
        sums = self._sums_of(metric)
        counts = self._counts_of(metric) if sums.ndim else torch.tensor(self._sequences)
        return metric.then(sums.sum().item() / counts.sum().item())

    def _counts_of(self, metric: Metric) -> Tensor:
        """What the sums are divided by, (n)."""
        return self._sums.get(metric.per or "", self._scored)

    def _sums_of(self, metric: Metric) -> Tensor:
        return self._sums[metric.of if isinstance(metric.of, str) else metric.name]

    def by_position(self, task: Task) -> dict[str, Any]:
        """The curve over positions: position t is that of the target of tokens 0 … t.

        Returns:
            ``metric``: the task's headline metric, or "error" where that is one of whole
            sequences; ``edges`` of the bins, one more than there are bins (at most `BINS`, all as
            wide but the last); ``values``: the metric over the scored tokens of each bin, None
            where there is none.
        """
        metric = metric_called(task.metric)
        metric = metric if self._sums_of(metric).ndim else ERROR
        n = len(self._scored)
        width = math.ceil(n / BINS)
        sums = torch.split(self._sums_of(metric), width)
        counts = torch.split(self._counts_of(metric), width)
        values = [
            metric.then(part.sum().item() / count.sum().item()) if count.any() else None
            for part, count in zip(sums, counts, strict=True)
        ]
        return {"metric": metric.name, "edges": [*range(0, n, width), n], "values": values}


def results_table(
    splits: Mapping[str, Mapping[str, float]], task: Task, title: str | None = None
) -> Table:
    """Results for the terminal: a row for each split with its length, a column for each metric
    that fits the task."""
    measured = next(iter(splits.values()), {})
    metrics = [one for one in METRICS.values() if one.name in measured and one.fits(task)]
    table = Table("split", title=Text(title) if title else None, title_justify="left")
    for heading in ("tokens", *map(_narrow, metrics)):
        table.add_column(heading, justify="right")
    for split, values in splits.items():
        cells = (one.text(values[one.name], more=1) for one in metrics)
        table.add_row(Text(split), str(task.seq_len(split)), *cells)
    return table


def _narrow(metric: Metric) -> str:
    """Its heading where there is little room: ``error %``, ``loss (nats)``."""
    if metric.share:
        return f"{metric.words} %"
    return f"{metric.words} ({metric.unit})" if metric.unit else metric.words
