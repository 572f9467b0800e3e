"""The trial of a config: its task is made, its model is built and run once, without weights.

What task, scheme or decoder refuse is reported where its key was written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from xcope.config.assemble import make_model_for, make_task
from xcope.config.errors import ConfigError, Path, dotted
from xcope.config.schema import Config, ModelConfig
from xcope.config.wording import quotes_needed
from xcope.config.yaml_tree import Node
from xcope.errors import FlagError, did_you_mean, listing, words_of
from xcope.modules import SeamError
from xcope.positions.plan import SPLITS
from xcope.tasks import Task


def check_task(tree: Node, config: Config, *, data: bool = True) -> None:
    """Raise `ConfigError` if the task cannot be made or, with ``data``, not be drawn from."""
    try:
        task = make_task(config.task)
        if data:
            task.check_data()
    except FlagError as error:
        key = "name" if error.flag == "task" else error.flag
        raise _located(tree, [("task", key), ("task",)], str(error)) from error
    except Exception as error:
        message = f"the task fails with these options: {type(error).__name__}: {words_of(error)}"
        raise _located(tree, [("task",)], message) from error


def check_splits(tree: Node, config: Config) -> None:
    """Raise `ConfigError` if a split is to be measured that the task does not have."""
    splits = make_task(config.task).measurable
    for split in config.evaluate.splits or ():
        if split not in splits:
            raise ConfigError(
                f"task {config.task.name!r} has no test split {split!r}: choose among "
                f"{listing(splits)}{did_you_mean(split, splits)}",
                "evaluate.splits",
                tree.mark_of(("evaluate", "splits")),
            )


def check_model(tree: Node, config: Config) -> None:
    """Raise `ConfigError` if the decoder cannot be built, or fails on a short input."""
    task = make_task(config.task)
    try:
        _try(config.model, task)
    except SeamError:
        raise  # nothing that the config's author could change
    except Exception as error:
        flag = error.flag if isinstance(error, FlagError) else ""
        paths = itertools.chain(_paths(tree, flag), _culprits(config.model, task), [("model",)])
        raise _located(tree, paths, _reason(error)) from error


def _try(config: ModelConfig, task: Task) -> None:
    model = make_model_for(config, task, device="meta").eval()
    n = min(2, task.max_seq_len)
    try:
        logits = model(torch.zeros(1, n, dtype=torch.long, device="meta"))
    except (FlagError, AssertionError, TypeError):
        raise
    except Exception:
        return  # an operation that only works on numbers: nothing is known
    shape = getattr(logits, "shape", None)
    if shape != (1, n, task.num_tokens):
        raise FlagError("model", f"the model does not give logits (b n {task.num_tokens})")


def _culprits(config: ModelConfig, task: Task) -> Iterator[Path]:
    """The flags without which the model works; x-transformers does not say which it dislikes."""
    for flag in config.flags:
        others = {key: value for key, value in config.model_dump().items() if key != flag}
        try:
            _try(ModelConfig(**others), task)
        except Exception:
            continue
        yield ("model", flag)


def _reason(error: Exception) -> str:
    if isinstance(error, FlagError):
        return str(error)
    return f"x-transformers fails with this: {type(error).__name__}: {words_of(error)}"


def _located(tree: Node, paths: Iterable[Path], message: str) -> ConfigError:
    """The error at the first of the paths that was written."""
    path = next((path for path in paths if tree.get(*path)), ())
    node = tree.get(*path)
    message += quotes_needed(node.written if node else "", message)
    return ConfigError(message, dotted(path), tree.mark_of(path))


def _paths(tree: Node, flag: str) -> Iterator[Path]:
    """Where a flag of the decoder or the wrapper may have been written, likeliest first."""
    written = [
        ((*path, option), f"{entry.get('name', '')}_{option}")
        for path, entry in _position_entries(tree)
        for option in entry
    ]
    yield from (path for path, spelled in written if flag == spelled)
    yield ("model", flag)
    if flag == "attn_dim_head":
        yield ("model", "dim_head")
    # a scheme that stands for two reports its part's flag: cope_max_pos of cope_rotary
    yield from (path for path, _ in written if f"_{flag}".endswith(f"_{path[-1]}"))


def _position_entries(tree: Node) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The mappings under ``model.position``, with their paths."""
    path: Path = ("model", "position")
    position = tree.get(*path)
    if position is not None:
        yield from _entries_in(path, position)


def _entries_in(path: Path, node: Node) -> Iterator[tuple[Path, dict[str, Any]]]:
    """See `_position_entries`; splits by layers and heads are entered."""
    if isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _entries_in((*path, index), child)
    elif node.children:
        yield path, node.plain()
        for split in SPLITS:
            if split in node.children:
                yield from _entries_in((*path, split), node.children[split])
