"""A config's sections turned into the objects that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from xcope.errors import FlagError, listing
from xcope.modules import Decoder, TransformerWrapper, wrapper_flags
from xcope.modules.flags import option_flags
from xcope.positions import entries, parse, schemes
from xcope.tasks import Task, task

if TYPE_CHECKING:
    from xcope.config.schema import ModelConfig, TaskConfig

ABSOLUTE_SWITCHES = frozenset({"use_abs_pos_emb", "scaled_sinu_pos_emb", "disable_abs_pos_emb"})
"""Flags that say whether positions are added to the input; without a position and without them
x-transformers would silently add learned ones."""


def make_task(config: TaskConfig) -> Task:
    """The task.

    Raises:
        FlagError: see `xcope.tasks.task`.
    """
    return task(config.name, config.options)


def make_model(config: ModelConfig, task: Task, device: str = "cpu") -> TransformerWrapper:
    """The decoder for a task, with fresh weights; on device ``"meta"`` without any.

    Raises:
        FlagError: see `xcope.Decoder` and `xcope.TransformerWrapper`; heads that do not divide
            dim, no position at all, a table of positions that is too short for the task.
    """
    flags = _flags(config)
    to_wrapper = wrapper_flags()
    inner = {flag: value for flag, value in flags.items() if flag not in to_wrapper}
    outer = {flag: value for flag, value in flags.items() if flag in to_wrapper}
    inner.setdefault("attn_dim_head", head_width(config))
    with torch.device(device):
        decoder = Decoder(
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            position=config.position,
            **inner,
        )
        if decoder.abs_pos_default and not ABSOLUTE_SWITCHES & flags.keys():
            raise FlagError(
                "position", f"no position is named: set position to one of {listing(schemes())}"
            )
        model = TransformerWrapper(
            num_tokens=task.num_tokens,
            max_seq_len=config.max_seq_len or task.max_seq_len,
            attn_layers=decoder,
            **outer,
        )
    _check_length(model, task)
    return model


def head_width(config: ModelConfig) -> int:
    """Width of a head: ``dim_head``, or ``dim / heads``.

    Raises:
        FlagError: heads that do not divide dim.
    """
    if config.dim_head is not None:
        return config.dim_head
    if config.dim % config.heads:
        raise FlagError(
            "heads",
            f"heads={config.heads} does not divide dim={config.dim}: choose another number, or "
            "set dim_head",
        )
    return config.dim // config.heads


def _flags(config: ModelConfig) -> dict[str, Any]:
    """The flags as keyword arguments; null is as if not written."""
    flags = {}
    options = option_flags()
    for flag, value in config.flags.items():
        if value is None:
            continue
        if isinstance(value, str) and flag not in options:
            raise FlagError(flag, f"expected true, false, a number or a list, got {value!r}")
        # YAML has lists where the keywords take tuples, one entry per layer
        flags[flag] = tuple(value) if isinstance(value, list) else value
    if "attn_dim_head" in flags and config.dim_head is not None:
        raise FlagError("attn_dim_head", "stands beside dim_head, which means the same: drop one")
    _check_said_once(config, flags)
    return flags


def _check_said_once(config: ModelConfig, flags: Mapping[str, Any]) -> None:
    """Refuse ``position: {name: cope, max_pos: 64}`` beside ``cope_max_pos: 32``."""
    for entry in entries(config.position):
        names = {one.name for one in parse(entry).schemes}
        for flag, takers in option_flags().items():
            for name, option in takers:
                given = {option, f"{name}_{option}"} & entry.keys()
                if flag in flags and name in names and given:
                    raise FlagError(
                        flag, f"{flag}={flags[flag]!r} stands beside position={entry!r}: drop one"
                    )


def _check_length(model: TransformerWrapper, task: Task) -> None:
    rows = model.max_table_len
    if rows is None or task.max_seq_len <= rows:
        return
    longest = max(task.every_split, key=task.seq_len)
    raise FlagError(
        "max_seq_len",
        f"max_seq_len={rows} ends the table of learned absolute positions, but split {longest!r} "
        f"of task {task.name!r} has sequences of {task.max_seq_len} tokens: raise max_seq_len or "
        "drop it",
    )
