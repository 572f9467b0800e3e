"""Loss and errors of a model on the test splits of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError, did_you_mean, listing
from xcope.modules import TransformerWrapper
from xcope.tasks import IGNORE, Task


@dataclass
class Tally:
    """Sums over batches, in float64, and the metrics that follow from them."""

    loss: float = 0.0
    scored: int = 0
    wrong: int = 0
    sequences: int = 0
    wrong_sequences: int = 0

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits (b n num_tokens), targets (b n) with `IGNORE` where not scored."""
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        scored = targets != IGNORE
        wrong = scored & (logits.argmax(dim=-1) != targets)
        self.loss += losses.double().sum().item()
        self.scored += int(scored.sum())
        self.wrong += int(wrong.sum())
        self.sequences += int(scored.any(dim=-1).sum())
        self.wrong_sequences += int(wrong.any(dim=-1).sum())

    def metrics(self, task: Task) -> dict[str, float]:
        """``loss`` in nats per scored token, ``error`` and ``sequence_error`` as shares of 1, and
        ``bits_per_byte`` where that is the task's metric (its tokens are bytes)."""
        if self.scored == 0:
            raise ValueError(f"task {task.name!r} scored no token in the batches it gave")
        metrics = {
            "loss": self.loss / self.scored,
            "error": self.wrong / self.scored,
            "sequence_error": self.wrong_sequences / self.sequences,
        }
        if task.metric == "bits_per_byte":
            metrics["bits_per_byte"] = metrics["loss"] / math.log(2)
        return metrics


def evaluate(
    model: TransformerWrapper,
    task: Task,
    *,
    batches: int,
    batch_size: int,
    seed: int,
    device: torch.device | str | None = None,
    splits: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure ``model`` on the test splits of ``task``.

    Args:
        model: maps tokens (b n) to logits (b n num_tokens); its mode is as before afterwards.
        task: gives the data; batches 0 … ``batches`` − 1 of the stream (split, ``seed``) are used,
            so that every model sees the same.
        batches: how many batches of each split.
        batch_size: sequences per batch.
        seed: of the test data.
        device: where to compute; None leaves the model where it is.
        splits: which of ``task.splits``; None for all.

    Returns:
        Split → metric → value; the metrics are those of `Tally.metrics`.

    Raises:
        FlagError: an unknown split; sequences that the model's table of learned absolute
            positions is too short for.
    """
    chosen = tuple(task.splits if splits is None else splits)
    check_splits(model, task, chosen)
    if device is not None:
        model.to(device)
    results = {}
    with measuring(model) as place:
        for split in chosen:
            tally = Tally()
            for index in range(batches):
                batch = task.batch(split, batch_size, seed, index)
                tally.add(model(batch.tokens.to(place)), batch.targets.to(place))
            results[split] = tally.metrics(task)
    return results


def check_splits(model: TransformerWrapper, task: Task, splits: Sequence[str]) -> None:
    """Refuse what cannot be measured, before anything is; errors as `evaluate`."""
    limit = model.max_table_len
    for split in splits:
        if split not in task.splits:
            raise FlagError(
                "splits",
                f"task {task.name!r} has no test split {split!r}: choose among "
                f"{listing(task.splits)}{did_you_mean(split, task.splits)}",
            )
        if limit is not None and task.seq_len(split) > limit:
            raise FlagError(
                "splits",
                f"split {split!r} of task {task.name!r} has sequences of {task.seq_len(split)} "
                f"tokens, but the model's table of learned absolute positions ends at {limit}: "
                "train with a larger model.max_seq_len, or choose shorter splits",
            )


@contextmanager
def measuring(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, undone afterwards; yields the model's device."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)
