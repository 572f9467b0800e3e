"""YAML read into a tree that remembers the line of every key, and written back.

Plain scalars follow YAML 1.2: ``1e-3`` is a number, ``no`` a word, ``010`` ten. Duplicate keys,
foreign tags and syntax errors are a `ConfigError` with file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import yaml

from xcope.config.errors import ConfigError, Mark, Path

Scalar: TypeAlias = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "int": (re.compile(r"[-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+"), "-+0123456789"),
    "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        "-+0123456789.",
    ),
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
}


@dataclass(frozen=True)
class Node:
    """A value with the place where its key was written."""

    value: Mapping[str, Node] | list[Node] | Scalar
    mark: Mark

    @property
    def children(self) -> Mapping[str, Node]:
        """The entries of a mapping; nothing for other values."""
        return self.value if isinstance(self.value, Mapping) else {}

    def plain(self) -> Any:
        """The value without marks: dicts, lists and scalars."""
        if isinstance(self.value, Mapping):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def get(self, *path: str | int) -> Node | None:
        """The node at ``path``, None where there is none."""
        node = self
        for part in path:
            below = node.value if isinstance(node.value, list) else node.children
            found = _at(below, part)
            if found is None:
                return None
            node = found
        return node

    def mark_of(self, path: Path) -> Mark:
        """Where ``path`` was written, or the nearest key above it that was."""
        for end in range(len(path), 0, -1):
            node = self.get(*path[:end])
            if node is not None:
                return node.mark
        return self.mark


def _at(nodes: Mapping[str, Node] | list[Node], part: str | int) -> Node | None:
    if isinstance(nodes, list):
        return nodes[part] if isinstance(part, int) and part < len(nodes) else None
    return nodes.get(part) if isinstance(part, str) else None


def from_plain(value: Any, mark: Mark) -> Node:
    """The tree of dicts, lists and scalars that were made in Python."""
    if isinstance(value, Mapping):
        return Node({str(key): from_plain(child, mark) for key, child in value.items()}, mark)
    if isinstance(value, list | tuple):
        return Node([from_plain(child, mark) for child in value], mark)
    if value is None or isinstance(value, str | int | float):
        return Node(value, mark)
    raise ConfigError(f"{value!r} cannot stand in YAML", mark=mark)


def shown_path(path: FilePath) -> str:
    """The path as a person would type it: from here if it lies below, else in full."""
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else relative


def read_file(path: FilePath) -> Node:
    """The tree of a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: unreadable, not UTF-8, not YAML, a duplicate key, or not a mapping.
    """
    mark = Mark(shown_path(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", mark=mark) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text: {error.reason}", mark=mark) from error
    tree = read_text(text, mark)
    if tree.value is None:
        return Node({}, tree.mark)
    if not isinstance(tree.value, Mapping):
        raise ConfigError("expected keys and values, such as 'train: {steps: 600}'", mark=tree.mark)
    return tree


def read_text(text: str, mark: Mark, key: str = "") -> Node:
    """The tree of YAML text that came from ``mark``.

    A ``mark`` without a line stands for a file whose lines are counted, unless ``key`` names the
    override whose value the text is.

    Raises:
        ConfigError: not YAML, or a duplicate key.
    """
    reader = _Reader(mark, key)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not YAML: {message}", key, reader.mark(line)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}", key, mark) from error
    if root is None:
        return Node(None, reader.mark(None))
    return reader.node(root, root.start_mark)


def write_text(data: Any) -> str:
    """YAML that `read_text` reads back to the same data; short lists and mappings on one line."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=100,
    )


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # only in double quotes do all line breaks and control characters survive
        return self.represent_scalar(_TAG + "str", data, None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


_Loader.yaml_implicit_resolvers = {}  # instead of those of YAML 1.1
for _name, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), list(_first)
        )


class _Reader:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, origin: Mark, key: str) -> None:
        self.origin = origin
        self.key = key
        self.open: list[yaml.Node] = []

    def mark(self, where: yaml.Mark | None) -> Mark:
        if self.key or where is None:
            return self.origin
        return Mark(self.origin.source, where.line + 1)

    def fail(self, message: str, where: yaml.Mark) -> ConfigError:
        return ConfigError(message, self.key, self.mark(where))

    def node(self, node: yaml.Node, where: yaml.Mark) -> Node:
        if node in self.open:
            raise self.fail("an alias (*) stands inside the value that it repeats", where)
        self.open.append(node)
        value: Mapping[str, Node] | list[Node] | Scalar
        if isinstance(node, yaml.MappingNode):
            value = self.mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.node(item, item.start_mark) for item in node.value]
        else:
            value = self.scalar(str(node.tag), str(node.value), where)
        self.open.pop()
        return Node(value, self.mark(where))

    def mapping(self, node: yaml.MappingNode) -> Mapping[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail("a key must be a word, not a list or mapping", key.start_mark)
            if key.value in entries:
                first = entries[key.value].mark
                raise self.fail(
                    f"key {key.value!r} stands twice (first at {first})", key.start_mark
                )
            entries[key.value] = self.node(value, key.start_mark)
        return entries

    def scalar(self, tag: str, text: str, where: yaml.Mark) -> Scalar:
        kind = tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind not in _PLAIN or not _PLAIN[kind][0].fullmatch(text):
            raise self.fail(f"{tag} {text!r} is not a value that a config can hold", where)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text, 16) if text.startswith("0x") else int(text)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
