"""Measure a model on the test splits of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from xcope.errors import FlagError, did_you_mean, listing
from xcope.modules import TransformerWrapper
from xcope.tasks import Task
from xcope.training.errors import BrokenModelError
from xcope.training.metrics import Tally

MOST_PAIRS = 2**22
"""The most pairs of query and key that are measured at once, counted once for all heads: larger
batches go through the model in parts, so that long sequences need no more memory."""


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
            positions, or what it draws places from, is too short for.
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
    measured: Callable[[str, int, int], None] | None = None,
) -> dict[str, Tally]:
    """Split → the sums from which metrics and curves follow; see `evaluate`, which takes the
    same arguments and raises the same errors.

    Args:
        measured: is told after each batch, see `xcope.training.progress.Reporter`.
    """
    chosen = tuple(task.splits if splits is None else splits)
    check_splits(model, task, chosen)
    if device is not None:
        model.to(device)
    tallies = {split: Tally() for split in chosen}
    with measuring(model) as place, drawing_its_own(place):
        for split, one in tallies.items():
            torch.manual_seed(seed)  # for schemes that draw places in evaluation
            for index in range(batches):
                batch = task.batch(split, batch_size, seed, index)
                at_once = max(1, MOST_PAIRS // batch.tokens.shape[1] ** 2)
                for first in range(0, len(batch.tokens), at_once):
                    part = batch.rows(slice(first, first + at_once)).to(place)
                    one.add(part.logits(model), part.targets, part.bytes)
                if measured is not None:
                    measured(split, index + 1, batches)
            check_loss(model, split, one.loss)
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
        for one in getattr(model, "schemes", ()):
            draw = getattr(one, "draw", None)
            if draw is not None and draw.at_test and draw.places_for < task.seq_len(split):
                raise FlagError(
                    "splits",
                    f"split {split!r} of task {task.name!r} has sequences of "
                    f"{task.seq_len(split)} tokens, which need as many places to be drawn from, "
                    f"and {one.flag('random_max')} is {draw.most}: choose shorter splits",
                )


@contextmanager
def drawing_its_own(device: torch.device) -> Iterator[None]:
    """Random numbers that are drawn within are none that training would draw."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


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
