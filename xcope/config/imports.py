"""The plugins that a config names under ``import``: found, run if they may, and written out in
full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from xcope import plugins
from xcope.config.errors import ConfigError, Mark, dotted, shown
from xcope.config.yaml_tree import Node, from_plain
from xcope.plugins import Plugin, PluginError

KEY = "import"
KEYS = ("file", "module", "folder", "sha256")
MADE = (
    "metrics.jsonl",
    "results.json",
    "timing.json",
    "checkpoint",
    ".checkpoint.old",
    "results.csv",
    "report.md",
)
"""What lies beside the ``config.yaml`` of a run or a comparison."""


def with_plugins(tree: Node, file: FilePath | None = None) -> Node:
    """Run the plugins that a tree names; returns the tree with each as `xcope.plugins.Plugin`.

    Those that the user has named run: on the command line, in Python, in the file that was named or
    one of the same project that it extends. What else is named runs as `xcope.plugins.load` says.

    Args:
        file: that the user named; None where there is none, or where it is that of a run.

    Raises:
        ConfigError: a plugin that is missing, fails, or may not run; not a list of texts.
    """
    node = tree.get(KEY)
    if node is None:
        return tree
    found = []
    for path, entry in _entries(node):
        try:
            plugin, recorded = _plugin(path, entry)
            own = entry.mark.line is None or (not recorded and _is_own(entry.mark, file))
            copies = copies_for(FilePath(entry.mark.folder).absolute())
            plugins.load([plugin], copies, named=own)
        except PluginError as error:
            raise ConfigError(str(error), dotted(path), entry.mark) from error
        found.append(from_plain(plugin.written, entry.mark))
    return Node({**tree.children, KEY: Node(found, node.mark)}, tree.mark)


def copies_for(folder: FilePath) -> list[FilePath]:
    """Where copies of the plugins of a run lie: with it, or with the comparison that it is of."""
    return [folder / "plugins", folder.parent.parent / "plugins"]


def _entries(node: Node) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    if isinstance(node.value, list):
        yield from (((KEY, index), entry) for index, entry in enumerate(node.value))
    elif node.value is not None:
        yield (KEY,), node


def _plugin(path: tuple[str | int, ...], entry: Node) -> tuple[Plugin, bool]:
    """The plugin that an entry means, and whether a run has written it down."""
    if isinstance(entry.value, str):
        return plugins.named(entry.value, entry.mark.folder), False
    said = entry.plain()
    if isinstance(said, Mapping) and said and all(isinstance(one, str) for one in said.values()):
        one_of = {"file", "module"} & said.keys()
        if len(one_of) == 1 and "sha256" in said and not said.keys() - {*KEYS}:
            return Plugin(**said), True
    raise ConfigError(
        f"expected a Python file (recency.py) or a module (my_pkg.tasks), or a list of these, got "
        f"{shown(said)}",
        dotted(path),
        entry.mark,
    )


def _is_own(mark: Mark, file: FilePath | None) -> bool:
    """Whether an entry stands in the file that the user named, or one of the same project."""
    if file is None:
        return False
    written, named = FilePath(mark.source).resolve(), file.resolve()
    if _is_of_run(written) or _is_of_run(named):
        return False
    return written == named or written.is_relative_to(_project(named))


def _is_of_run(file: FilePath) -> bool:
    """Whether a file lies in the folder of a run or a comparison."""
    return any(
        (folder / "config.yaml").is_file() and any((folder / name).exists() for name in MADE)
        for folder in file.parents
    )


def _project(file: FilePath) -> FilePath:
    """The folder that a file belongs to: that of its repository, else its own."""
    for folder in file.parents:
        if folder in (FilePath.home(), FilePath("/")):
            break
        if (folder / ".git").exists() or (folder / "pyproject.toml").is_file():
            return folder
    return file.parent
