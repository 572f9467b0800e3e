"""AdamW, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from xcope.config import TrainConfig


def adamw(
    model: nn.Module, train: TrainConfig, position_parameters: Iterable[nn.Parameter] = ()
) -> AdamW:
    """AdamW that decays matrices only: gains, biases and other vectors are left alone.

    Each group of parameters has the factor of its learning rate under ``"scale"``: 1, or
    ``train.position_lr_scale`` for what the positional schemes learn.
    """
    own = set(position_parameters)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = train.weight_decay if parameter.ndim >= 2 else 0.0
            scale = train.position_lr_scale if parameter in own else 1.0
            groups.setdefault((decay, scale), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=train.lr,
        betas=train.betas,
    )


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
