"""From a tree to a `Config`: its keys, its types, and the names in it; nothing is built.

Nothing that takes long is imported for it, as far as `xcope.catalogue` knows what there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from xcope import catalogue, files
from xcope.config.errors import (
    ConfigError,
    Path,
    dotted,
    expected,
    near_choice,
    quotes_needed,
    shown,
)
from xcope.config.schema import SECTIONS, Config, TuneConfig, check_keys, path_keys
from xcope.config.yaml_tree import Node
from xcope.errors import FlagError
from xcope.registry import check_named

SPLITS = ("layers", "heads")
"""Keys of a position that is split, see `xcope.positions.plan`."""
START = "start"
"""A key of any scheme, see there."""
KINDS = {"name": "schemes", "preset": "presets"}
"""Keys of a position under which a name stands → what is called so."""


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
    for path, kind in [*kinds.items()]:
        kinds["sweep", ".".join(path)] = kind
    for path, kind in [*kinds.items(), *_paths_of_swept_tasks(tree)]:
        node = tree.get(*path)
        if node is not None:
            inner = plain
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = _located_paths(node, kind, path)
    return plain


def _paths_of_swept_tasks(tree: Node) -> Iterator[tuple[Any, files.IsPath]]:
    """The options of ``sweep: {task: [{name: text, …}]}`` that are paths, and where they stand."""
    swept = tree.get("sweep", "task")
    for index, one in enumerate(swept.value if swept and isinstance(swept.value, list) else ()):
        name = one.get("name")
        kinds = path_keys(name.value) if name and isinstance(name.value, str) else {}
        for path, kind in kinds.items():
            if path[0] == "task":
                yield ("sweep", "task", index, path[1]), kind


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
        if key in kind.keys and kind.keys[key].unless not in node.children
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


def check_names(tree: Node, config: Config) -> None:
    """Refuse a task or a scheme that there is not, and options that they do not have, in the words
    of those who would build them; does nothing where the catalogue does not say what there is.

    Raises:
        ConfigError: the first such name or option.
    """
    known = catalogue.read()
    if known is None:
        return
    tasks = {name: one["options"] for name, one in known["tasks"].items()}
    try:
        check_named(
            tasks, config.task.name, config.task.options, flag="task", noun="task", spelled=str
        )
    except FlagError as error:
        raise located_in_task(tree, error) from error
    kinds = {
        key: {name: one["options"] for name, one in known[kinds].items()}
        for key, kinds in KINDS.items()
    }
    position = config.model.position
    for key, name, options in [*_spelled_out(position), *_named(position)]:
        try:
            check_named(
                kinds[key],
                name,
                options,
                flag="position",
                noun=KINDS[key].removesuffix("s"),
                spelled=lambda option, name=name: f"{name}_{option}",  # type: ignore[misc]
                elsewhere={other: names for other, names in kinds.items() if other != key},
            )
        except FlagError as error:
            raise located(tree, [*paths_of(tree, error.flag), ("model",)], str(error)) from error


Named = tuple[str, str, Mapping[str, Any]]
"""The key (of `KINDS`) under which a scheme's or a preset's name stands, the name, its options."""


def _named(position: Any) -> Iterator[Named]:
    """What a position names, in the order in which it is parsed, as far as it is one."""
    if isinstance(position, str):
        yield "name", position, {}
    for entry in position if isinstance(position, list) else ():
        yield from _named(entry)
    if isinstance(position, Mapping):
        split = next((split for split in SPLITS if split in position), None)
        key = next((key for key in ("preset", "name") if key in position), None)
        if split is not None:
            yield from _named(position[split])
        elif key is not None and isinstance(position[key], str):
            said = {k: v for k, v in position.items() if k not in (key, START)}
            yield key, position[key], said


def _spelled_out(position: Any) -> Iterator[Named]:
    """Those that are mappings, which are looked at first."""
    if isinstance(position, Mapping | list):
        yield from (one for one in _named(position) if one[2])


def located_in_task(tree: Node, error: FlagError) -> ConfigError:
    """What a task refuses, where it was written."""
    key = "name" if error.flag == "task" else error.flag
    return located(tree, [("task", key), ("task",)], str(error))


def located(tree: Node, paths: Iterable[Path], message: str) -> ConfigError:
    """The error at the first of the paths that was written."""
    path = next((path for path in paths if tree.get(*path)), ())
    node = tree.get(*path)
    message += quotes_needed(node.written if node else "", message)
    return ConfigError(message, dotted(path), tree.mark_of(path))


def paths_of(tree: Node, flag: str) -> Iterator[Path]:
    """Where a flag of the decoder or the wrapper may have been written, likeliest first."""
    written = [
        ((*path, option), f"{entry.get('preset', entry.get('name', ''))}_{option}")
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
