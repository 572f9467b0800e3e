"""``sweep``: keys with several values each; a run for every combination."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from xcope.config.check import checked, typed
from xcope.config.errors import COMMAND_LINE, ConfigError, Mark
from xcope.config.keys import known_keys, unknown_key
from xcope.config.overrides import parse_override, set_keys
from xcope.config.schema import SECTIONS, Config
from xcope.config.wording import shown
from xcope.config.yaml_tree import Node, from_plain
from xcope.errors import did_you_mean, listing

MOST_RUNS = 10_000
"""Of a sweep or of its tuning."""
ABOVE = frozenset({"sweep", "tune", "baseline"})
"""Keys that are about several runs: no run has them."""


def expand_sweep(config: Config, *, data: bool = True) -> list[Config]:
    """The config of every run, the first key of the sweep changing slowest.

    A run is what the same values as overrides on the command line would give. Without a sweep
    there is one run.

    Args:
        data: read the data of the tasks, to see that they suffice; without, see `check_data`.

    Raises:
        ConfigError: a key that cannot be swept over, a list that is empty or holds a value twice, a
            run whose task or model cannot be built.
    """
    tree = tree_of(config)
    return combinations(tree, sweep_axes(tree), "the sweep's run", data)


def check_overrides(tree: Node, overrides: Sequence[str]) -> None:
    """Refuse an override of a key that the sweep or tuning sets.

    Raises:
        ConfigError: names the key of the sweep or of tune to override instead.
    """
    for text in overrides:
        key = ".".join(parse_override(text)[0])
        for section, set_key, values in _set_above(tree):
            if f"{key}.".startswith(f"{set_key}.") or f"{set_key}.".startswith(f"{key}."):
                raise ConfigError(
                    f"the {section} sets {set_key!r} ({values.mark}): override "
                    f"'{section}.{set_key}' instead, or drop the {section} with {section}=null",
                    key,
                    COMMAND_LINE,
                )


def _set_above(tree: Node) -> Iterator[tuple[str, str, Node]]:
    """Section, key and values of all that is set by the sweep or tuning."""
    for section in ("sweep", "tune"):
        node = tree.get(section)
        for key, values in (node.children if node else {}).items():
            if "." in key:
                yield section, key, values


def tree_of(config: Config) -> Node:
    """The tree that the config was read from, unless it is a copy that was changed since."""
    if config.source is not None and typed(config.source) == config:
        return config.source
    return from_plain(config.model_dump(), Mark("config"))


def sweep_axes(tree: Node) -> dict[str, list[Node]]:
    """Key → values of the sweep, checked; nothing without a sweep."""
    sweep = tree.get("sweep")
    axes = {}
    for key, node in (sweep.children if sweep else {}).items():
        values = node.value if isinstance(node.value, list) else []
        if wrong := unknown(key) or unusable([value.plain() for value in values]):
            raise ConfigError(wrong, f"sweep.{key}", node.mark)
        axes[key] = values
    return axes


def combinations(tree: Node, axes: Mapping[str, list[Node]], run: str, data: bool) -> list[Config]:
    """The checked config of every combination of values, the first key changing slowest.

    Args:
        run: what one of them is called in an error.
        data: see `expand_sweep`.

    Raises:
        ConfigError: a run that cannot be built, more than `MOST_RUNS` of them.
    """
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_RUNS:
        raise ConfigError(
            f"the sweep has {count:,} runs: at most {MOST_RUNS:,}",
            "sweep",
            tree.mark_of(("sweep",)),
        )
    base = Node({key: node for key, node in tree.children.items() if key not in ABOVE}, tree.mark)
    tried: set[str] = set()
    return [
        _run(base, dict(zip(axes, values, strict=True)), tried, run, data)
        for values in itertools.product(*axes.values())
    ]


def unknown(key: str) -> str | None:
    """What is wrong with a key that is to be set, if anything is."""
    section, dot, rest = key.partition(".")
    if not dot or section not in SECTIONS:
        return (
            f"unknown key {key!r}; a sweep sets keys of {listing(SECTIONS)}, for instance "
            f"'train.seed'{did_you_mean(section, SECTIONS)}"
        )
    name = rest.partition(".")[0]
    known = section == "task" or name in known_keys(section)
    return None if known else unknown_key(name, section)


def unusable(values: list[object]) -> str | None:
    """What is wrong with the values of a key, if anything is."""
    if not values:
        return "the list of values is empty"
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    return f"{shown(twice[0])} stands twice in the list" if twice else None


def _run(base: Node, values: Mapping[str, Node], tried: set[str], name: str, data: bool) -> Config:
    tree = set_keys(base, ((key.split("."), value) for key, value in values.items()))
    try:
        return checked(tree, tried, data=data)
    except ConfigError as error:
        if not values:
            raise
        run = " ".join(f"{key}={shown(value.plain())}" for key, value in values.items())
        message = f"{error.message} (in {name} {run})"
        raise ConfigError(message, error.key, error.mark) from error
