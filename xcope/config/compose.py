"""One tree from several YAML files and the command line.

What a file ``extends`` comes first, later files win over it, and ``model.position=rotary`` on the
command line wins over all files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from xcope import files
from xcope.config.errors import COMMAND_LINE, ConfigError, Mark, Path, shown
from xcope.config.yaml_tree import Node, from_plain, read_file, read_text, shown_path
from xcope.errors import FlagError, did_you_mean
from xcope.plugins import tell

PACKAGE = FilePath(__file__).resolve().parents[1]
LIBRARY = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()),
    PACKAGE / "configs",
)
"""The configs that come with xcope: in its wheel, or beside it in a clone."""

MOST_FILES = 100
"""Files that one config is composed of, each counted as often as it is extended."""
LONGEST_CHAIN = 20
"""Files that extend each other in a row."""

NAMED: tuple[Path, ...] = (("task",), ("model", "position"))
"""Values that are a name with options; another name does not inherit the options."""

LONGEST_PATH = 16
"""Parts of a key on the command line."""
LITERAL = ("*", "@", "%", "`")
"""No YAML value begins with one of these, so an override that does is a text as it stands."""


def compose(path: str | FilePath) -> Node:
    """The tree of a file with all that it extends.

    Raises:
        ConfigError: a file that is missing or cannot be read, a cycle, an ``extends`` that is
            neither a path nor a list of paths, more than `MOST_FILES` files.
    """
    mark = Mark(str(path))
    file = _path(str(path), mark)
    if not _exists(file, mark):
        if file.is_dir():
            raise ConfigError("is a folder: name a YAML file", mark=mark)
        packaged = _packaged(file)
        if packaged is None or not _exists(packaged, mark):
            near = _nearest(file.name, file.parent, "*.yaml")
            if packaged is not None and not near:
                near = _nearest(file.as_posix(), LIBRARY.parent, "configs/**/*.yaml")
            raise ConfigError(f"there is no such file{near}", mark=mark)
        tell(f"there is no {file} here; the one that comes with xcope is used: {packaged}")
        file = packaged
    return _compose(file, (), itertools.count(1))


def _packaged(path: FilePath) -> FilePath | None:
    """Where ``configs/…`` would lie among the configs that come with xcope."""
    return LIBRARY.joinpath(*path.parts[1:]) if path.parts[:1] == ("configs",) else None


def _compose(file: FilePath, chain: tuple[FilePath, ...], number: Iterator[int]) -> Node:
    own = read_file(file)
    if next(number) > MOST_FILES or len(chain) > LONGEST_CHAIN:
        raise ConfigError(
            f"too many files: at most {MOST_FILES} may be extended, {LONGEST_CHAIN} in a row",
            "extends",
            own.mark,
        )
    entries = dict(own.children)
    tree = Node({}, own.mark)
    for name, mark in _extended(entries.pop("extends", None)):
        base = _find(name, file, mark)
        opened = (*chain, file)
        met = [done.resolve() for done in opened]
        if base.resolve() in met:
            loop = [*opened[met.index(base.resolve()) :], base]
            names = " → ".join(shown_path(step) for step in loop)
            raise ConfigError(f"the files extend each other in a cycle: {names}", "extends", mark)
        tree = merge(tree, _compose(base, opened, number))
    return merge(tree, Node(entries, own.mark))


def _extended(extends: Node | None) -> Iterator[tuple[str, Mark]]:
    if extends is None:
        return
    for item in extends.value if isinstance(extends.value, list) else [extends]:
        if not isinstance(item.value, str):
            raise ConfigError(
                f"expected a file or a list of files, got {shown(item.plain())}",
                "extends",
                item.mark,
            )
        yield item.value, item.mark


def _find(name: str, file: FilePath, mark: Mark) -> FilePath:
    folders = [file.parent, *_config_folders(file)]
    path = _path(name, mark)
    for candidate in [*(folder / path for folder in folders), _packaged(path)]:
        if candidate is not None and _exists(candidate, mark):
            return candidate
    searched = " nor in ".join(dict.fromkeys(shown_path(folder) for folder in folders))
    # only a configs folder is surely small enough to be searched with all that it holds
    patterns = ["*.yaml", *["**/*.yaml"] * (len(folders) - 1)]
    near = next(filter(None, map(_nearest, itertools.repeat(name), folders, patterns)), "")
    if "*" in name:
        near = "; a pattern is not expanded: name each file"
    raise ConfigError(f"there is no file {shown(name)} in {searched}{near}", "extends", mark)


def _path(name: str, mark: Mark) -> FilePath:
    try:
        return files.expanded(name)
    except FlagError as error:
        raise ConfigError(str(error), mark=mark) from error


def _exists(file: FilePath, mark: Mark) -> bool:
    """Whether there is something other than a folder to read."""
    try:
        return file.exists() and not file.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise ConfigError(f"{shown(str(file))} cannot be read: {error.strerror}", mark=mark) from (
            error
        )


def _config_folders(file: FilePath) -> list[FilePath]:
    """Folders called ``configs`` that hold the file, innermost first, then xcope's own."""
    return [p for p in file.absolute().parents if p.name == "configs"] + [LIBRARY]


def _nearest(name: str, folder: FilePath, pattern: str) -> str:
    return did_you_mean(name, [f.relative_to(folder).as_posix() for f in folder.glob(pattern)])


def merge(old: Node, new: Node, path: Path = ()) -> Node:
    """``old`` with what ``new`` says: mappings key by key, all else replaced.

    Where a scheme or a task is named (`NAMED`), the same name adds to the options, another one
    replaces the first with all its options. Files add to what is imported.
    """
    if path in NAMED:
        if None not in (_name(old), _name(new)) and _name(old) != _name(new):
            return new
        old, new = _spelled_out(old, new)
    if path == ("import",) and new.mark.line is not None:
        return _both(old, new)
    if not (isinstance(old.value, Mapping) and isinstance(new.value, Mapping)):
        return new
    entries = dict(old.value)
    for key, child in new.value.items():
        entries[key] = merge(entries[key], child, (*path, key)) if key in entries else child
    # the command line is no place to look for what a section lacks
    return Node(entries, old.mark if new.mark.line is None else new.mark)


def _both(old: Node, new: Node) -> Node:
    """The entries of two lists, or of a list and a single value, each once."""
    entries = {
        (str(entry.plain()), entry.mark.folder): entry
        for node in (old, new)
        for entry in (node.value if isinstance(node.value, list) else [node])
        if entry.value is not None
    }
    return Node([*entries.values()], new.mark)


def _name(node: Node) -> Any:
    """``cope`` of ``cope`` and of ``{name: cope, max_pos: 64}``, another one of a preset; None
    where there is no name."""
    named = node if isinstance(node.value, str) else node.get("name")
    released = None if named else node.get("preset")
    return ("preset", released.value) if released else named.value if named else None


def _spelled_out(old: Node, new: Node) -> tuple[Node, Node]:
    """``cope`` as ``{name: cope}`` where the other side is a mapping to merge with."""
    if isinstance(old.value, str) and isinstance(new.value, Mapping):
        return Node({"name": old}, old.mark), new
    if isinstance(old.value, Mapping) and isinstance(new.value, str):
        return old, Node({"name": new}, new.mark)
    return old, new


def override(tree: Node, overrides: Sequence[str]) -> Node:
    """``tree`` with ``a.b=value`` for each override; the value is YAML, the last one wins.

    A value that begins with one of `LITERAL` is a text: ``task.glob=**/*.txt``.

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
        nested = value
        for key in reversed(path):
            nested = Node({key: nested}, value.mark)
        given = merge(given, nested)
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
    if len(path) > LONGEST_PATH:
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
