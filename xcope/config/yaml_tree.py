"""YAML read into a tree that remembers the line of every key, and written back.

Plain scalars follow YAML 1.2: ``1e-3`` is a number, ``no`` a word, ``010`` ten. Merge keys (``<<``)
work as in YAML 1.1. Duplicate keys, foreign tags, syntax errors and what is beyond the bounds below
are a `ConfigError` with file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import yaml

from xcope import files
from xcope.config.errors import ConfigError, Mark, Path

Scalar: TypeAlias = str | int | float | bool | None

MOST_BYTES = 2**18
"""Of a file or an override."""
DEEPEST = 64
"""Lists and mappings inside each other."""
MOST_VALUES = 20_000
"""Values of a file, counted again wherever an alias repeats them."""
LONGEST_KEY = 200
"""Letters of a key."""
LONGEST_NUMBER = 64
"""Characters of a number."""

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
    """A value with the place where its key was written.

    Args:
        written: how a number, true, false or null was spelled; empty for other values.
    """

    value: Mapping[str, Node] | list[Node] | Scalar
    mark: Mark
    written: str = field(default="", compare=False)

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


def from_plain(value: Any, mark: Mark, deep: int = 0) -> Node:
    """The tree of dicts, lists and scalars that were made in Python.

    Raises:
        ConfigError: something else, or nested more than `DEEPEST` times.
    """
    if deep > DEEPEST:
        raise ConfigError(_too_deep(), mark=mark)
    if isinstance(value, Mapping):
        entries = {str(key): from_plain(child, mark, deep + 1) for key, child in value.items()}
        return Node(entries, mark)
    if isinstance(value, list | tuple):
        return Node([from_plain(child, mark, deep + 1) for child in value], mark)
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST_NUMBER:
        raise ConfigError(f"a number may have {LONGEST_NUMBER} digits at most", mark=mark)
    if isinstance(value, str) and not _encodable(value):
        raise ConfigError(f"{value!r} is no text: it holds half of a surrogate pair", mark=mark)
    if value is None or isinstance(value, str | int | float):
        return Node(value, mark)
    raise ConfigError(f"{value!r} cannot stand in YAML", mark=mark)


def _too_deep() -> str:
    return f"lists and mappings are nested more than {DEEPEST} times"


def _encodable(text: str) -> bool:
    """Whether UTF-8 has all characters of a text; it lacks the halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_path(path: FilePath) -> str:
    """The path as a person would type it: from here if it lies below, else in full."""
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else relative


def read_file(path: FilePath) -> Node:
    """The tree of a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: unreadable, not UTF-8, not YAML, beyond the bounds, or not a mapping.
    """
    mark = Mark(shown_path(path))
    try:
        text = files.read_text(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", mark=mark) from error
    except files.UnreadableError as error:
        raise ConfigError(str(error), mark=mark) from error
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
        ConfigError: not YAML, beyond the bounds, a duplicate key, or a value that a ``#`` cuts.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"is too large: at most {MOST_BYTES:,} bytes are read", key, mark)
    return _Reader(text, mark, key).document()


def write_text(data: Any, *, block: bool | None = None) -> str:
    """YAML that `read_text` reads back to the same data; short lists and mappings on one line.

    Args:
        block: a line for each key and each item instead, however long; False: one line for all.
    """
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None if block is None else not block,
        allow_unicode=True,
        width=100 if block is None else 2**31,
    )


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # only in double quotes do all line breaks and control characters survive
        return self.represent_scalar(_TAG + "str", data, None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


for _name, (_pattern, _first) in _PLAIN.items():
    _Dumper.add_implicit_resolver(
        _TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), list(_first)
    )

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it: ten times faster."""
_ODD = (ValueError, OverflowError, LookupError, RecursionError)
"""What PyYAML raises for some odd input besides its own errors."""


class _Reader:
    """Turns PyYAML's events into a tree.

    Args:
        origin: the file, or where else the text came from.
        key: of the override whose value the text is; empty for a file.
    """

    def __init__(self, text: str, origin: Mark, key: str) -> None:
        self.text, self.origin, self.key = text, origin, key
        self.events = self._parsed()
        self.values = 0
        # name → its value and how many values that are; None while it is read
        self.anchors: dict[str, tuple[Node, int] | None] = {}

    def _parsed(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self.text, Loader=_PARSER)
        except yaml.MarkedYAMLError as error:
            parts = (error.context, error.problem)
            message = ", ".join(str(part) for part in parts if part)
            raise self.fail(f"not YAML: {message}", error.problem_mark or error.context_mark) from (
                error
            )
        except (yaml.YAMLError, *_ODD) as error:
            raise self.fail(f"not YAML: {str(error)[:200]}", None) from error

    def mark(self, where: yaml.Mark | None) -> Mark:
        if self.key or where is None:
            return self.origin
        return Mark(self.origin.source, where.line + 1)

    def fail(self, message: str, where: Any) -> ConfigError:
        if self.key:
            message += f"; a text with such characters needs quotes: '{self.key}=\"…\"'"
        return ConfigError(message, self.key, self.mark(where))

    def document(self) -> Node:
        """The only document; null where there is none."""
        root, event = Node(None, self.mark(None)), next(self.events)
        while not isinstance(event, yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                if self.values:
                    message = "not YAML of one document: a second begins here"
                    raise self.fail(message, event.start_mark)
                event = next(self.events)
                root = self.node(event, event.start_mark, 0)
                self._check_end(event)
            event = next(self.events)
        return root

    def _check_end(self, root: Any) -> None:
        """Refuse an override that ``#`` cuts."""
        if self.key and isinstance(root, yaml.ScalarEvent) and root.end_mark is not None:
            rest = self.text[root.end_mark.index :].strip()
            if rest.startswith("#"):
                raise self.fail(f"YAML takes {rest!r} for a comment", None)

    def node(self, event: Any, where: yaml.Mark, deep: int) -> Node:
        """The value that begins with ``event``.

        Args:
            where: the place to name in errors: that of its key.
            deep: lists and mappings around it.
        """
        self._count(1, where)
        if isinstance(event, yaml.AliasEvent):
            return self._repeated(str(event.anchor), where)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if self.key and (event.anchor is not None or getattr(event, "style", None) in ("|", ">")):
            raise self.fail("YAML takes '&', '|' and '>' for signs of its own", where)
        before = self.values
        written = ""
        value: Mapping[str, Node] | list[Node] | Scalar
        if isinstance(event, yaml.ScalarEvent):
            value, written = self.scalar(event, where)
        else:
            kind = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
            if event.tag not in (None, "!", _TAG + kind):
                raise self.fail(f"{event.tag} is not a value that a config can hold", where)
            if deep >= DEEPEST:
                raise self.fail(_too_deep(), where)
            value = self.mapping(deep + 1) if kind == "map" else self.sequence(deep + 1)
        node = Node(value, self.mark(where), written)
        if event.anchor is not None:
            self.anchors[event.anchor] = node, self.values - before
        return node

    def _count(self, values: int, where: yaml.Mark) -> None:
        self.values += values
        if self.values > MOST_VALUES:
            raise self.fail(
                f"more than {MOST_VALUES:,} values, counting what aliases (*) repeat", where
            )

    def _repeated(self, name: str, where: yaml.Mark) -> Node:
        if name not in self.anchors:
            raise self.fail(f"the alias *{name} has no anchor &{name} before it", where)
        anchored = self.anchors[name]
        if anchored is None:
            raise self.fail("an alias (*) stands inside the value that it repeats", where)
        node, values = anchored
        self._count(values, where)
        return Node(node.value, self.mark(where), node.written)

    def sequence(self, deep: int) -> list[Node]:
        return [
            self.node(item, item.start_mark, deep) for item in self._until(yaml.SequenceEndEvent)
        ]

    def _until(self, end: type[Any]) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event

    def mapping(self, deep: int) -> Mapping[str, Node]:
        merged: dict[str, Node] | None = None
        entries: dict[str, Node] = {}
        for key in self._until(yaml.MappingEndEvent):
            where = key.start_mark
            if not isinstance(key, yaml.ScalarEvent) or key.tag not in (None, "!", _TAG + "str"):
                raise self.fail("a key must be a word, not a list, mapping or alias", where)
            if len(key.value) > LONGEST_KEY:
                raise self.fail(f"a key of {len(key.value)} letters: {LONGEST_KEY} at most", where)
            if not _encodable(key.value):
                raise self.fail(f"key {key.value!r} holds half of a surrogate pair", where)
            child = self.node(next(self.events), where, deep)
            if key.value == "<<" and key.implicit[0]:
                if merged is not None:
                    raise self.fail("key '<<' stands twice: give it a list, [*a, *b]", where)
                merged = self._merged(child, where)
            elif key.value in entries:
                first = entries[key.value].mark
                raise self.fail(f"key {key.value!r} stands twice (first at {first})", where)
            else:
                entries[key.value] = child
        return {**(merged or {}), **entries}

    def _merged(self, node: Node, where: yaml.Mark) -> dict[str, Node]:
        """What a merge key brings: of several mappings the first wins."""
        merged: dict[str, Node] = {}
        for mapping in node.value if isinstance(node.value, list) else [node]:
            if not isinstance(mapping.value, Mapping):
                raise self.fail("'<<' merges mappings: *name, or a list [*a, *b]", where)
            merged = {**merged, **{k: v for k, v in mapping.value.items() if k not in merged}}
        return merged

    def scalar(self, event: Any, where: yaml.Mark) -> tuple[Scalar, str]:
        """The value, and how it is written where it is not a text."""
        text = str(event.value)
        tag = _TAG + "str" if event.tag == "!" else event.tag
        if tag is None:
            kinds = (kind for kind, (pattern, _) in _PLAIN.items() if pattern.fullmatch(text))
            tag = _TAG + (next(kinds, "str") if event.implicit[0] else "str")
        kind = tag.removeprefix(_TAG)
        if kind == "str":
            self._check_text(event, where)
            return text, ""
        if kind not in _PLAIN or not _PLAIN[kind][0].fullmatch(text):
            raise self.fail(f"{tag} {text[:80]!r} is not a value that a config can hold", where)
        if kind in ("int", "float") and len(text) > LONGEST_NUMBER:
            message = f"a number of {len(text)} characters: {LONGEST_NUMBER} at most"
            raise self.fail(message, where)
        if kind == "null":
            return None, text
        if kind == "bool":
            return text.lower() == "true", text
        if kind == "int":
            return int(text, 16) if text.startswith("0x") else int(text), text
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")), text

    def _check_text(self, event: Any, where: yaml.Mark) -> None:
        if not _encodable(event.value):
            raise self.fail(f"{event.value!r} holds half of a surrogate pair", where)
        rest = self.text[event.end_mark.index :].partition("\n")[0]
        # '# ' begins a comment that was meant as one; 'runs/a #1' was meant as a name
        if not event.style and not self.key and re.match(r"[ \t]+#[^\s#]", rest):
            raise self.fail(
                f"{event.value[:80]!r} ends where YAML sees a comment, {rest.strip()[:80]!r}: put "
                "quotes around the whole value, or a space after '#'",
                where,
            )
