"""Loss and errors of a model on the test splits of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError, did_you_mean, listing
from xcope.modules import TransformerWrapper
from xcope.tasks import IGNORE, Task
from xcope.training.errors import BrokenModelError

BINS = 64
"""The most bins of a curve over positions."""
MOST_PAIRS = 2**22
"""The most pairs of query and key that are measured at once, counted once for all heads: larger
batches go through the model in parts, so that long sequences need no more memory."""


@dataclass
class Tally:
    """Sums over batches of sequences of one length, and the metrics that follow from them.

    ``loss`` (float64), ``scored`` and ``wrong`` (int64) are sums of each position, (n) on the CPU.
    """

    sequences: int = 0
    wrong_sequences: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    scored: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    wrong: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits (b n num_tokens), targets (b n) with `IGNORE` where not scored."""
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        scored = targets != IGNORE
        wrong = scored & (logits.argmax(dim=-1) != targets)
        self.sequences += int(scored.any(dim=-1).sum())
        self.wrong_sequences += int(wrong.any(dim=-1).sum())
        self.loss = self.loss + losses.cpu().double().sum(dim=0)
        self.scored = self.scored + scored.sum(dim=0).cpu()
        self.wrong = self.wrong + wrong.sum(dim=0).cpu()

    def metrics(self, task: Task) -> dict[str, float]:
        """``loss`` in nats per scored token, ``error`` and ``sequence_error`` as shares of 1, and
        ``bits_per_byte`` where that is the task's metric (its tokens are bytes)."""
        scored = int(self.scored.sum())
        if scored == 0:
            raise ValueError(f"task {task.name!r} scored no token in the batches it gave")
        loss = self.loss.sum().item() / scored
        metrics = {
            "loss": loss,
            "error": int(self.wrong.sum()) / scored,
            "sequence_error": self.wrong_sequences / self.sequences,
        }
        if task.metric == "bits_per_byte":
            metrics["bits_per_byte"] = loss / math.log(2)
        return metrics

    def by_position(self, task: Task) -> dict[str, Any]:
        """The curve over positions: position t is that of the target of tokens 0 … t.

        Returns:
            ``metric``: "bits_per_byte" where that is the task's, else "error"; ``edges`` of the
            bins, one more than there are bins (at most `BINS`, all as wide but the last);
            ``values``: the metric over the scored tokens of each bin, None where there is none.
        """
        n = len(self.scored)
        width = math.ceil(n / BINS)
        in_bytes = task.metric == "bits_per_byte"
        sums = self.loss / math.log(2) if in_bytes else self.wrong.double()
        bins = zip(torch.split(sums, width), torch.split(self.scored, width), strict=True)
        values = [
            part.sum().item() / int(scored.sum()) if scored.any() else None for part, scored in bins
        ]
        metric = "bits_per_byte" if in_bytes else "error"
        return {"metric": metric, "edges": [*range(0, n, width), n], "values": values}


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
        batch_size: sequences per batch; long ones are measured a few at a time (`MOST_PAIRS`).
        seed: of the test data.
        device: where to compute; None leaves the model where it is.
        splits: which of ``task.measurable``; None for ``task.splits``.

    Returns:
        Split → metric → value; the metrics are those of `Tally.metrics`.

    Raises:
        FlagError: an unknown split; sequences that the model's table of learned absolute
            positions is too short for.
        BrokenModelError: the loss on a split is not finite.
    """
    tallies = tally(
        model, task, batches=batches, batch_size=batch_size, seed=seed, device=device,
        splits=splits,
    )  # fmt: skip
    return {split: one.metrics(task) for split, one in tallies.items()}


def tally(
    model: TransformerWrapper,
    task: Task,
    *,
    batches: int,
    batch_size: int,
    seed: int,
    device: torch.device | str | None = None,
    splits: Sequence[str] | None = None,
) -> dict[str, Tally]:
    """Split → the sums from which metrics and curves follow; see `evaluate`, which takes the
    same arguments and raises the same errors."""
    chosen = tuple(task.splits if splits is None else splits)
    check_splits(model, task, chosen)
    if device is not None:
        model.to(device)
    tallies = {split: Tally() for split in chosen}
    with measuring(model) as place:
        for split, one in tallies.items():
            for index in range(batches):
                batch = task.batch(split, batch_size, seed, index)
                at_once = max(1, MOST_PAIRS // batch.tokens.shape[1] ** 2)
                parts = (torch.split(t, at_once) for t in (batch.tokens, batch.targets))
                for tokens, targets in zip(*parts, strict=True):
                    one.add(model(tokens.to(place)), targets.to(place))
            check_loss(model, split, float(one.loss.sum()))
    return tallies


def check_loss(model: nn.Module, split: str, loss: float) -> None:
    """Raise `BrokenModelError` unless the loss on a split is finite."""
    if not math.isfinite(loss):
        broken = broken_weights(model)
        raise BrokenModelError(
            f"the model is broken: its loss on split {split!r} is {loss}. "
            + (f"{broken}" if broken else "Its weights are finite, its logits are not")
        )


def broken_weights(model: nn.Module) -> str:
    """``"token_emb.emb.weight holds NaN or infinity in 3 of 512 numbers"``; empty if none does."""
    found = []
    for name, weight in model.named_parameters():
        bad = int((~weight.isfinite()).sum())
        if bad:
            found.append(f"{name} holds NaN or infinity in {bad} of {weight.numel()} numbers")
    more = f", and so do {len(found) - 1} other parameters" if len(found) > 1 else ""
    return found[0] + more if found else ""


def check_splits(model: TransformerWrapper, task: Task, splits: Sequence[str]) -> None:
    """Refuse what cannot be measured, before anything is; errors as `evaluate`."""
    limit = model.max_table_len
    for split in splits:
        if split not in task.measurable:
            raise FlagError(
                "splits",
                f"task {task.name!r} has no test split {split!r}: choose among "
                f"{listing(task.measurable)}{did_you_mean(split, task.measurable)}",
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
