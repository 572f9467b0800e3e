"""``model.position=rotary train.seed=3``: any key of a config, set on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xcope.config.compose import merge
from xcope.config.errors import COMMAND_LINE, ConfigError
from xcope.config.yaml_tree import Node, from_plain, read_text

DEEPEST = 16
"""Parts of a key."""
LITERAL = ("*", "@", "%", "`")
"""What no YAML value can begin with that stands alone: such a value is a text, as it is."""


def override(tree: Node, overrides: Sequence[str]) -> Node:
    """``tree`` with ``a.b=value`` for each override; the value is YAML, the last one wins.

    A value that begins as none of YAML does is a text: ``task.glob=**/*.txt``.

    Raises:
        ConfigError: no ``=``, no key before it, a value that is not YAML or that ``#`` cuts.
    """
    return set_keys(tree, map(parse_override, overrides))


def set_keys(tree: Node, values: Iterable[tuple[Sequence[str], Node]]) -> Node:
    """``tree`` with a value at each path.

    The values are put together first: ``task.length=64 task.name=counting`` keeps the length,
    whichever stands first.
    """
    given = Node({}, COMMAND_LINE)
    for path, value in values:
        given = merge(given, nest(path, value))
    return merge(tree, given)


def parse_override(text: str) -> tuple[tuple[str, ...], Node]:
    """Path and value of one override."""
    key, equals, value = text.partition("=")
    path = split_key(key.strip())
    if not equals:
        raise _malformed(text, "lacks '='")
    if not key.strip():
        raise _malformed(text, "has no key before '='")
    if not all(path):
        raise _malformed(text, "has an empty part in its key")
    if len(path) > DEEPEST:
        raise _malformed(f"{text:.60}", f"has a key of {len(path)} parts")
    if value.strip().startswith(LITERAL):
        return path, from_plain(value.strip(), COMMAND_LINE)
    return path, read_text(value, COMMAND_LINE, key.strip())


def _malformed(text: str, wrong: str) -> ConfigError:
    advice = "write key=value, for instance model.position=rotary"
    return ConfigError(f"{text!r} {wrong}: {advice}", mark=COMMAND_LINE)


def split_key(key: str) -> tuple[str, ...]:
    """``a.b.c`` → its parts; after ``sweep.`` and ``tune.`` all that follows is one key."""
    first, dot, rest = key.partition(".")
    return (first, rest) if first in ("sweep", "tune") and dot else tuple(key.split("."))


def nest(path: Sequence[str], value: Node) -> Node:
    """The tree in which only ``path`` is set."""
    for key in reversed(path):
        value = Node({key: value}, value.mark)
    return value
