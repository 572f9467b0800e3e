"""From a tree to a `Config`: its keys, its types, and whether task and model can be built.

A model is built and run once, without weights. What task, scheme or decoder refuse is reported
with the file, line and key where it was written.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pydantic import ValidationError

from xcope import files
from xcope.config.build import head_width, make_model_for, make_task
from xcope.config.errors import (
    ConfigError,
    Mark,
    Path,
    dotted,
    expected,
    near_choice,
    quotes_needed,
    shown,
)
from xcope.config.schema import SECTIONS, Config, ModelConfig, TuneConfig, check_keys, path_keys
from xcope.config.yaml_tree import Node
from xcope.errors import FlagError, did_you_mean, listing, words_of
from xcope.modules import SeamError
from xcope.positions.plan import SPLITS
from xcope.tasks import Task


def checked(tree: Node, passed: set[str] | None = None, *, data: bool = True) -> Config:
    """The config of one run, ``dim_head`` and ``max_seq_len`` filled in.

    Args:
        tree: what was written.
        passed: descriptions of tasks and models that were tried before and are not tried again;
            those of this config are added.
        data: read the data of the task, to see that they suffice.

    Raises:
        ConfigError: an unknown key, a wrong type, a task or a model that cannot be built.
    """
    config = typed(tree)
    passed = set() if passed is None else passed
    described = f"data: {data}, {config.task!r}"
    if described not in passed:
        check_task(tree, config, data=data)
        passed.add(described)
    described = f"{config.model!r}, {config.task!r}"
    if described not in passed:
        check_model(tree, config)
        passed.add(described)
    task = make_task(config.task)
    _check_splits(tree, config, task)
    sizes = {"max_seq_len": config.model.max_seq_len or task.max_seq_len}
    if "attn_dim_head" not in config.model.rest:
        sizes["dim_head"] = head_width(config.model)
    return config.model_copy(update={"model": config.model.model_copy(update=sizes)})


def check_data(config: Config) -> None:
    """Raise `ConfigError` if the data of a config's task cannot be read, or do not suffice."""
    check_task(config.source or Node({}, Mark("config")), config)


def check_trackers(config: Config) -> None:
    """Raise `ConfigError` if a tracker of ``train.track`` is not installed."""
    for name in config.train.track or ():
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'{name} is not installed: pip install "xcope[track]", or leave it out',
                "train.track",
                config.source.mark_of(("train", "track")) if config.source else None,
            )


def typed(tree: Node) -> Config:
    """The config with known keys and right types; nothing is built.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing key.
    """
    check_keys(tree)
    try:
        # in JSON, as in YAML, a list may stand for a tuple
        config = Config.model_validate_json(json.dumps(_with_paths(tree)))
    except ValidationError as error:
        raise _explained(tree, error) from error
    return config.read_from(tree)


def _with_paths(tree: Node) -> Any:
    """What was written, as plain values, every path in full.

    Raises:
        ConfigError: a path with a user or a variable that is not there.
    """
    plain = tree.plain()
    named = tree.get("task", "name") or tree.get("task")
    kinds = path_keys(named.value if named and isinstance(named.value, str) else None)
    sweep = {("sweep", ".".join(path)): kind for path, kind in kinds.items()}
    for path, kind in {**kinds, **sweep}.items():
        node = tree.get(*path)
        if node is not None:
            inner = plain
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = _located_paths(node, kind, path)
    return plain


def _located_paths(node: Node, kind: files.IsPath, path: Path) -> Any:
    """The plain value of a node that says a path, or several."""
    if isinstance(node.value, str):
        try:
            return kind.located(node.value, node.mark.folder)
        except files.UnknownPathError as error:
            raise ConfigError(str(error), dotted(path), node.mark) from error
    if isinstance(node.value, list):
        return [_located_paths(item, kind, (*path, i)) for i, item in enumerate(node.value)]
    inner = {
        key: _located_paths(child, kind.keys[key], (*path, key))
        for key, child in node.children.items()
        if key in kind.keys
    }
    return {**node.plain(), **inner} if inner else node.plain()


def _explained(tree: Node, error: ValidationError) -> ConfigError:
    """pydantic's first complaint in our words."""
    first = error.errors()[0]
    path = _path(first["loc"])
    if not path:  # no complaint about a key: JSON that could not be read
        return ConfigError(first["msg"], mark=tree.mark)
    kind = _kind(path)
    node = tree.get(*path)
    if first["type"] == "value_error":  # ours, with words of its own
        message = str(first["ctx"]["error"])
    elif node is None:
        message = f"is missing: expected {expected(kind)}"
    else:
        given = node.plain()
        message = f"expected {expected(kind)}, got {shown(given)}{near_choice(given, kind)}"
        message += quotes_needed(node.written, expected(kind))
    return ConfigError(message, dotted(path), tree.mark_of(path))


def _path(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The section and key of pydantic's location, without the branches inside a value."""
    depth = 2 if location and location[0] in (*SECTIONS, "sweep", "tune") else 1
    return tuple(str(part) for part in location[:depth])


def _kind(path: tuple[str, ...]) -> Any:
    """What the schema says of a key."""
    if len(path) == 1:
        fields = {field.alias or name: field for name, field in Config.model_fields.items()}
        return fields[path[0]]
    if path[0] == "sweep":
        return list
    return (SECTIONS | {"tune": TuneConfig})[path[0]].model_fields[path[1]]


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


def _check_splits(tree: Node, config: Config, task: Task) -> None:
    """Raise `ConfigError` if a split is to be measured that the task does not have."""
    for split in config.evaluate.splits or ():
        if split not in task.measurable:
            raise ConfigError(
                f"task {config.task.name!r} has no test split {split!r}: choose among "
                f"{listing(task.measurable)}{did_you_mean(split, task.measurable)}",
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
        flag = ""
        message = f"x-transformers fails with this: {type(error).__name__}: {words_of(error)}"
        if isinstance(error, FlagError):
            flag, message = error.flag, str(error)
        paths = itertools.chain(_paths(tree, flag), _culprits(config.model, task), [("model",)])
        raise _located(tree, paths, message) from error


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
        for path, entry in _position_entries(tree, ("model", "position"))
        for option in entry
    ]
    yield from (path for path, spelled in written if flag == spelled)
    yield ("model", flag)
    if flag == "attn_dim_head":
        yield ("model", "dim_head")
    # a scheme that stands for two reports its part's flag: cope_max_pos of cope_rotary
    yield from (path for path, _ in written if f"_{flag}".endswith(f"_{path[-1]}"))


def _position_entries(tree: Node, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The mappings at ``path`` and in the splits by layers and heads below it, with their paths."""
    node = tree.get(*path)
    if node is not None and isinstance(node.value, list):
        for index in range(len(node.value)):
            yield from _position_entries(tree, (*path, index))
    elif node is not None and node.children:
        yield path, node.plain()
        for split in SPLITS:
            yield from _position_entries(tree, (*path, split))
