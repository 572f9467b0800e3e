"""From a tree to a `Config`: its keys, its types, and whether task and model can be built.

Every error names file, line and key.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from xcope.config.assemble import head_width, make_task
from xcope.config.errors import ConfigError, Mark, dotted
from xcope.config.keys import check_keys
from xcope.config.schema import SECTIONS, Config, TuneConfig
from xcope.config.trial import check_model, check_splits, check_task
from xcope.config.wording import expected, near_choice, quotes_needed, shown
from xcope.config.yaml_tree import Node


def checked(tree: Node, tried: set[str] | None = None, *, data: bool = True) -> Config:
    """The config of one run, ``dim_head`` and ``max_seq_len`` filled in.

    Args:
        tree: what was written.
        tried: descriptions of models that were built before, which are not built again; this one
            is added.
        data: read the data of the task, to see that they suffice.

    Raises:
        ConfigError: an unknown key, a wrong type, a task or a model that cannot be built.
    """
    config = typed(tree)
    described = repr((config.model, config.task))
    tried = set() if tried is None else tried
    if described not in tried:
        check_task(tree, config, data=data)
        check_model(tree, config)
        tried.add(described)
    check_splits(tree, config)
    sizes = {"max_seq_len": config.model.max_seq_len or make_task(config.task).max_seq_len}
    if "attn_dim_head" not in config.model.flags:
        sizes["dim_head"] = head_width(config.model)
    return config.model_copy(update={"model": config.model.model_copy(update=sizes)})


def check_data(config: Config) -> None:
    """Raise `ConfigError` if the data of a config's task cannot be read, or do not suffice."""
    check_task(config.source or Node({}, Mark("config")), config)


def typed(tree: Node) -> Config:
    """The config with known keys and right types; nothing is built.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing key.
    """
    check_keys(tree)
    try:
        # in JSON, as in YAML, a list may stand for a tuple
        config = Config.model_validate_json(json.dumps(tree.plain()))
    except ValidationError as error:
        raise _explained(tree, error) from error
    return config.read_from(tree)


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
        return Config.model_fields[path[0]]
    if path[0] == "sweep":
        return list
    return (SECTIONS | {"tune": TuneConfig})[path[0]].model_fields[path[1]]
