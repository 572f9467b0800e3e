"""``sweep``: keys with several values each; a run for every combination."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from xcope.config.check import checked, typed
from xcope.config.errors import COMMAND_LINE, ConfigError, Mark
from xcope.config.keys import known_keys, unknown_key
from xcope.config.overrides import parse_override, set_keys
from xcope.config.schema import SECTIONS, Config
from xcope.config.wording import shown
from xcope.config.yaml_tree import Node, from_plain
from xcope.errors import did_you_mean, listing


def expand_sweep(config: Config) -> list[Config]:
    """The config of every run, the first key of the sweep changing slowest.

    A run is what the same values as overrides on the command line would give. Without a sweep
    there is one run.

    Raises:
        ConfigError: a key that cannot be swept over, a list that is empty or holds a value twice, a
            run whose task or model cannot be built.
    """
    tree = _tree_of(config)
    base = Node({key: node for key, node in tree.children.items() if key != "sweep"}, tree.mark)
    sweep = tree.get("sweep")
    axes = _axes(sweep) if sweep is not None else {}
    tried: set[str] = set()
    return [
        _run(base, dict(zip(axes, values, strict=True)), tried)
        for values in itertools.product(*axes.values())
    ]


def check_overrides(tree: Node, overrides: Sequence[str]) -> None:
    """Refuse an override of a key that the sweep sets.

    Raises:
        ConfigError: names the key of the sweep to override instead.
    """
    sweep = tree.get("sweep")
    for text in overrides:
        key = ".".join(parse_override(text)[0])
        for swept, values in (sweep.children if sweep else {}).items():
            if f"{key}.".startswith(f"{swept}.") or f"{swept}.".startswith(f"{key}."):
                raise ConfigError(
                    f"the sweep sets {swept!r} ({values.mark}): override 'sweep.{swept}' instead, "
                    "or drop the sweep with sweep=null",
                    key,
                    COMMAND_LINE,
                )


def _tree_of(config: Config) -> Node:
    """The tree that the config was read from, unless it is a copy that was changed since."""
    if config.source is not None and typed(config.source) == config:
        return config.source
    return from_plain(config.model_dump(), Mark("config"))


def _axes(sweep: Node) -> Mapping[str, list[Node]]:
    """Key → values of the sweep, checked."""
    axes = {}
    for key, node in sweep.children.items():
        values = node.value if isinstance(node.value, list) else []
        if wrong := _unknown(key) or _unusable([value.plain() for value in values]):
            raise ConfigError(wrong, f"sweep.{key}", node.mark)
        axes[key] = values
    return axes


def _unknown(key: str) -> str | None:
    section, dot, rest = key.partition(".")
    if not dot or section not in SECTIONS:
        return (
            f"unknown key {key!r}; a sweep sets keys of {listing(SECTIONS)}, for instance "
            f"'train.seed'{did_you_mean(section, SECTIONS)}"
        )
    name = rest.partition(".")[0]
    known = section == "task" or name in known_keys(section)
    return None if known else unknown_key(name, section)


def _unusable(values: list[object]) -> str | None:
    if not values:
        return "the list of values is empty"
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    return f"{shown(twice[0])} stands twice in the list" if twice else None


def _run(base: Node, values: Mapping[str, Node], tried: set[str]) -> Config:
    tree = set_keys(base, ((key.split("."), value) for key, value in values.items()))
    try:
        return checked(tree, tried)
    except ConfigError as error:
        if not values:
            raise
        run = " ".join(f"{key}={shown(value.plain())}" for key, value in values.items())
        message = f"{error.message} (in the sweep's run {run})"
        raise ConfigError(message, error.key, error.mark) from error
