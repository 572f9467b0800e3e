"""``xcope config``: a config as it is resolved, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from xcope import cli
from xcope.cli import _complete, _show

if TYPE_CHECKING:
    from xcope.config import Config
    from xcope.config.yaml_tree import Node

Path = tuple[str, ...]

EXAMPLES = """
xcope config configs/quickstart.yaml
xcope config configs/experiments/text.yaml model.position=cope train.lr=3e-4
xcope config runs/x/config.yaml
"""
POSITIONS: set[Path] = {("model", "position"), ("sweep", "model.position")}
COMPUTED: dict[Path, str] = {
    ("model", "dim_head"): "dim / heads",
    ("model", "max_seq_len"): "the longest sequence of the task",
}
"""Keys that are filled in where nobody wrote them."""


@cli.command(EXAMPLES)
@click.argument("config", type=_complete.CONFIG)
@click.argument("overrides", nargs=-1, metavar="[key=value]...", type=_complete.OVERRIDE)
@cli.trust_option
def command(config: str, overrides: tuple[str, ...]) -> None:
    """Print a config with all that it extends, its defaults, and where each value comes from.

    What is printed is YAML, and loads back to the same config.
    """
    from xcope.config import Mark, load_config
    from xcope.config.yaml_tree import Node, read_text

    loaded = load_config(config, overrides, sweep=True, data=False)
    tree = loaded.source or Node({}, Mark(config))
    told = started(read_text(loaded.to_yaml(), Mark(config)).plain(), loaded)
    for line in annotated(told, tree, ()):
        print(line)


def started(told: dict[str, Any], loaded: Config) -> dict[str, Any]:
    """What is told, with the options that ``start: authors`` stands for, in sweeps, too."""
    from xcope.modules.flags import with_starts

    flags = loaded.model.flags
    told["model"]["position"] = with_starts(told["model"]["position"], flags)
    swept = told.get("sweep", {}).get("model.position")
    if swept is not None:
        told["sweep"]["model.position"] = [with_starts(value, flags) for value in swept]
    return told


def annotated(told: Mapping[str, Any], tree: Node, path: Path) -> Iterator[str]:
    """The lines of a mapping, each with its origin as a comment."""
    from xcope.config.yaml_tree import write_text

    margin = "  " * len(path)
    for key, value in told.items():
        here = (*path, key)
        if isinstance(value, Mapping) and value:
            yield margin + write_text({key: 0}, block=True).removesuffix(" 0\n")
            yield from annotated(value, tree, here)
            if here == ("task",):
                yield from unsaid(value)
            if here in POSITIONS:
                yield from stood_for(value)
            continue
        block = None if isinstance(value, list) else True
        first, *others = write_text({key: value}, block=block).splitlines()
        comment = f"# {origin(tree, here)}"
        if others:  # a list of mappings
            yield f"{margin}{comment}"
        yield f"{margin}{first}" if others else f"{margin}{first}  {comment}"
        yield from (f"{margin}{line}" for line in others)
        if here in POSITIONS:
            yield from stood_for(value)


def origin(tree: Node, path: Path) -> str:
    """Where a value was written, or how it came about."""
    short = path[-1] == "name" and tree.get(*path[:-1])  # task: copy
    node = tree.get(*path) or (short if short and isinstance(short.value, str) else None)
    if node is not None and (node.value is not None or path not in COMPUTED):
        return str(node.mark)
    start = tree.get(*path[:-1], "start")
    if start is not None and start.value is not None:
        return f"start: {start.value}, {start.mark}"
    return COMPUTED.get(path, "default")


def stood_for(position: Any) -> Iterator[str]:
    """What the presets in a position stand for, layer by layer, as comments."""
    from xcope.positions import entries, parse

    for entry in entries(position):
        preset = parse(entry).preset
        if preset is not None:
            yield f"  # {preset.label()}, {preset.title} ({preset.source}), stands for"
            yield from (f"  #   {line}" for line in _show.position_lines(preset.position()))


def unsaid(task: Mapping[str, Any]) -> Iterator[str]:
    """The other options of the task, as comments."""
    options = _show.registered()["tasks"].get(task["name"], {}).get("options", {})
    for option, one in options.items():
        if option not in task:
            yield f"  # {option}: {_show.as_yaml(one['default'])}  (the task's default)"
