"""AdamW, and the learning rate as a function of the step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from xcope.config import TrainConfig


def adamw(model: nn.Module, train: TrainConfig) -> AdamW:
    """AdamW that decays matrices only: gains, biases and other vectors are left alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=train.lr, betas=train.betas)


def learning_rate(step: int, train: TrainConfig) -> float:
    """The rate of update ``step`` (from 0): a linear warm-up to ``lr``, then a cosine towards 0.

    The warm-up takes the share ``train.warmup`` of all updates; 0 would be reached one update
    after the last.
    """
    warmup = round(train.warmup * train.steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    progress = (step - warmup) / (train.steps - warmup)
    return train.lr * (1 + math.cos(math.pi * progress)) / 2
