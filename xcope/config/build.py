"""The task and the decoder that a config's sections describe."""

from __future__ import annotations

from typing import Any

import torch

from xcope.config.schema import ModelConfig, TaskConfig
from xcope.errors import FlagError, listing
from xcope.modules import Decoder, TransformerWrapper, wrapper_flags
from xcope.modules.flags import option_flags
from xcope.positions import entries, parse, schemes
from xcope.tasks import Task, task

LARGEST = 2**24
"""The largest whole number as a flag or an option of a scheme: some are the lengths of tables."""
COUNTED = dict.fromkeys(
    (
        "num_output_heads",
        "shift_tokens",
        "num_residual_streams",
        "dynamic_depth",
        "dynamic_pos_bias_mlp_depth",
    ),
    1024,
)
"""The largest value of flags that say how many modules or entries of a list there are."""

ABSOLUTE_SWITCHES = frozenset({"use_abs_pos_emb", "scaled_sinu_pos_emb", "disable_abs_pos_emb"})
"""Flags that say whether positions are added to the input; without a position and without them
x-transformers would silently add learned ones."""


def make_task(config: TaskConfig) -> Task:
    """The task; its data are not read yet.

    Raises:
        FlagError: see `xcope.tasks.task`.
    """
    return task(config.name, config.options, data=False)


def make_model(
    config: ModelConfig,
    num_tokens: int,
    longest: int,
    device: str | torch.device = "cpu",
    block: int | None = None,
) -> TransformerWrapper:
    """The decoder, with fresh weights; on device ``"meta"`` without any.

    Args:
        num_tokens: size of the vocabulary.
        longest: ``max_seq_len`` where the config does not say it.
        block: tokens of a row in training, for ``max_pos: block``; None: ``max_seq_len``.

    Raises:
        FlagError: see `xcope.Decoder` and `xcope.TransformerWrapper`; heads that do not divide
            dim, no position at all.
    """
    inner, outer = keywords(config)
    with torch.device(device):
        decoder = Decoder(position=config.position, **inner)
        decoder.block = block
        if decoder.abs_pos_default and not ABSOLUTE_SWITCHES & {*inner, *outer}:
            raise FlagError(
                "position", f"no position is named: set position to one of {listing(schemes())}"
            )
        return TransformerWrapper(
            num_tokens=num_tokens,
            max_seq_len=config.max_seq_len or longest,
            attn_layers=decoder,
            **outer,
        )


def keywords(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword flags of the decoder, beside ``position``, and of the wrapper around it.

    Raises:
        FlagError: a flag of the wrong type, too large, or said twice; heads that do not divide dim.
    """
    flags, to_wrapper = _checked_flags(config), wrapper_flags()
    sizes = {"dim": config.dim, "depth": config.depth, "heads": config.heads}
    inner = sizes | {flag: value for flag, value in flags.items() if flag not in to_wrapper}
    inner.setdefault("attn_dim_head", head_width(config))
    return inner, {flag: value for flag, value in flags.items() if flag in to_wrapper}


def make_model_for(config: ModelConfig, task: Task, device: str = "cpu") -> TransformerWrapper:
    """The decoder for a task; see `make_model`.

    Raises:
        FlagError: also a table of positions that is too short for the task, or fewer places to draw
            from than it has tokens.
    """
    block = task.seq_len("train")
    model = make_model(config, task.num_tokens, task.max_seq_len, device, block)
    _check_length(model, task)
    _check_draws(model, task)
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


def _checked_flags(config: ModelConfig) -> dict[str, Any]:
    flags, options = config.flags, option_flags()
    for flag, value in flags.items():
        if isinstance(value, str) and flag not in options:
            raise FlagError(flag, f"expected true, false, a number or a list, got {value!r}")
        _check_size(flag, value)
    if "attn_dim_head" in flags and config.dim_head is not None:
        raise FlagError("attn_dim_head", "stands beside dim_head, which means the same: drop one")
    _check_said_once(config)
    for entry in entries(config.position):
        for option, value in entry.items():
            _check_size(f"{entry.get('preset', entry.get('name'))}_{option}", value)
    return flags


def _check_size(flag: str, value: object) -> None:
    most = COUNTED.get(flag, LARGEST)
    if isinstance(value, int) and abs(value) > most:
        raise FlagError(
            flag,
            f"{flag}={value} is not allowed: a whole number of at most {most:,}; what is no count "
            "may be written as 1.0e9",
        )


def _check_said_once(config: ModelConfig) -> None:
    """Refuse ``position: {name: cope, max_pos: 64}`` beside ``cope_max_pos: 32``."""
    flags = config.flags
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


def _check_draws(model: TransformerWrapper, task: Task) -> None:
    for one in model.schemes:
        draw = getattr(one, "draw", None)
        if draw is None:
            continue
        splits = task.every_split if draw.at_test else ("train",)
        longest = max(splits, key=task.seq_len)
        if task.seq_len(longest) > draw.places_for:
            flag = one.flag("random_max")
            raise FlagError(
                flag,
                f"{flag}={draw.most} is not allowed: split {longest!r} of task {task.name!r} has "
                f"sequences of {task.seq_len(longest)} tokens, which need as many places to be "
                "drawn from: raise it",
            )
