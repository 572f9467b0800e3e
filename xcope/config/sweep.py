"""The runs that one config stands for.

``sweep`` gives keys several values each: a run for every combination. ``tune`` names keys whose
value is picked for each scheme of the sweep, in runs with seeds of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from xcope import catalogue, lazy
from xcope.config.compose import parse_override, set_keys
from xcope.config.errors import COMMAND_LINE, ConfigError, Mark, shown
from xcope.config.schema import SECTIONS, Config, Origin, TuneConfig, known_keys, unknown_key
from xcope.config.typed import check_names, typed
from xcope.config.yaml_tree import Node, from_plain
from xcope.errors import did_you_mean, listing

MOST_RUNS = 10_000
"""Of a sweep or of its tuning."""
ABOVE = frozenset({"sweep", "tune", "baseline"})
"""Keys that are about several runs: no run has them."""
FIXED = ("train.seed", "train.steps")
"""Keys of ``train`` that cannot be tuned: they are the same for all schemes."""


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
    origin = origin_of(config)
    if data or "sweep" not in origin.runs:
        axes = sweep_axes(origin.tree)
        origin.runs["sweep"] = combinations(origin, axes, "the sweep's run", data)
    return list(origin.runs["sweep"])


def expand_tuning(config: Config, *, data: bool = True) -> list[Config]:
    """The config of every tuning run.

    One for each combination of the sweep but for its training seeds, each combination of the
    values to try, and each tuning seed; the last changes fastest. A tuning run has the seeds and
    the steps that ``tune`` says, and is measured only in distribution.

    Args:
        data: see `expand_sweep`.

    Raises:
        ConfigError: nothing to try, a key that cannot be tuned or that the sweep sets, seeds that
            are those of the test, a run that cannot be built.
    """
    tune = config.tune
    if tune is None:
        return []
    origin = origin_of(config)
    if data or "tune" not in origin.runs:
        tree = origin.tree
        axes = sweep_axes(tree)
        axes.pop("train.seed", None)
        _check_seeds(tree, config, tune)
        axes |= _grid(tree, tune, axes)
        mark = tree.mark_of(("tune", "seeds"))
        axes["train.seed"] = [from_plain(seed, mark) for seed in tune.seeds]
        runs = combinations(origin, axes, "the tuning run", data)
        origin.runs["tune"] = [_tuned(run, tune) for run in runs]
    return list(origin.runs["tune"])


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
    """Section, key and values of each key that the sweep or tuning sets."""
    for section in ("sweep", "tune"):
        node = tree.get(section)
        for key, values in (node.children if node else {}).items():
            if "." in key or (section, key) == ("sweep", "task"):
                yield section, key, values


def origin_of(config: Config) -> Origin:
    """Where the config comes from; a new one for a copy that was changed, or made in Python."""
    if config.source is not None and typed(config.source) == config:
        return config.origin
    return Origin(from_plain(config.plain(), Mark("config")))


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


def check_sweep_names(config: Config) -> None:
    """Refuse what is misspelt in a run of the sweep, without importing torch.

    Raises:
        ConfigError: as `expand_sweep`.
    """
    origin = origin_of(config)
    _trees(origin, sweep_axes(origin.tree), "the sweep's run")


def combinations(
    origin: Origin, axes: Mapping[str, list[Node]], name: str, data: bool
) -> list[Config]:
    """The checked config of every combination of values, the first key changing slowest.

    Args:
        name: of a run, for errors.
        data: see `expand_sweep`.

    Raises:
        ConfigError: a run that cannot be built, more than `MOST_RUNS` of them.
    """
    trees = _trees(origin, axes, name)
    with lazy.importing():
        from xcope.config.check import checked

    runs = []
    for tree, values in trees:
        with _named_run(name, values):
            runs.append(checked(tree, origin.passed, data=data))
    return runs


def _trees(
    origin: Origin, axes: Mapping[str, list[Node]], name: str
) -> list[tuple[Node, dict[str, Node]]]:
    """What is written for every combination of values, and the values."""
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_RUNS:
        raise ConfigError(
            f"the sweep has {count:,} runs: at most {MOST_RUNS:,}",
            "sweep",
            origin.tree.mark_of(("sweep",)),
        )
    entries = {key: node for key, node in origin.tree.children.items() if key not in ABOVE}
    base, trees = Node(entries, origin.tree.mark), []
    for row in itertools.product(*axes.values()):
        values = dict(zip(axes, row, strict=True))
        tree = set_keys(base, ((key.split("."), value) for key, value in values.items()))
        trees.append((tree, values))
    if catalogue.read() is not None:  # what is misspelt is told before torch is imported
        for tree, values in trees:
            with _named_run(name, values):
                check_names(tree, typed(tree))
    return trees


@contextmanager
def _named_run(name: str, values: Mapping[str, Node]) -> Iterator[None]:
    """What is wrong with a run is told with the values that make it."""
    try:
        yield
    except ConfigError as error:
        if not values:
            raise
        run = " ".join(f"{key}={shown(value.plain())}" for key, value in values.items())
        message = f"{error.message} (in {name} {run})"
        raise ConfigError(message, error.key, error.mark) from error


def unknown(key: str) -> str | None:
    """What is wrong with a key of a sweep; None if nothing is."""
    section, dot, rest = key.partition(".")
    if key == "task":  # the section as a whole: names, and mappings of name and options
        return None
    if not dot or section not in SECTIONS:
        return (
            f"unknown key {key!r}; a sweep sets keys of {listing(SECTIONS)}, for instance "
            f"'train.seed'{did_you_mean(section, SECTIONS)}"
        )
    name = rest.partition(".")[0]
    known = section == "task" or name in known_keys(section)
    return None if known else unknown_key(name, section)


def unusable(values: list[object]) -> str | None:
    """What is wrong with the values of a key; None if nothing is."""
    if not values:
        return "the list of values is empty"
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    return f"{shown(twice[0])} stands twice in the list" if twice else None


def _tuned(run: Config, tune: TuneConfig) -> Config:
    from xcope.config.build import make_task

    evaluate = {"seed": tune.evaluate_seed, "splits": [make_task(run.task).validation]}
    train = {"steps": tune.steps or run.train.steps}
    return run.model_copy(
        update={
            "train": run.train.model_copy(update=train),
            "evaluate": run.evaluate.model_copy(update=evaluate),
        }
    )


def _grid(tree: Node, tune: TuneConfig, swept: dict[str, list[Node]]) -> dict[str, list[Node]]:
    """Key → values to try, checked."""
    if not tune.grid:
        message = "nothing to try: add for instance train.lr: [5.0e-4, 1.0e-3, 2.0e-3]"
        raise ConfigError(message, "tune", tree.mark_of(("tune",)))
    axes = {}
    for key in tune.grid:
        node = tree.get("tune", key)
        if node is None or not isinstance(node.value, list):
            given = node.plain() if node else tune.grid[key]
            raise _error(tree, key, f"expected a list of values, got {shown(given)}")
        if wrong := _wrong(key, node.value, swept):
            raise _error(tree, key, wrong)
        axes[key] = node.value
    return axes


def _wrong(key: str, values: Sequence[Node], swept: dict[str, list[Node]]) -> str | None:
    """What is wrong with a key to tune; None if nothing is."""
    if not key.startswith("train.") or key in FIXED:
        return (
            f"{key!r} cannot be tuned; allowed: {listing(TuneConfig.model_fields)} and the keys "
            f"of 'train' but {listing(FIXED)}, for instance 'train.lr'"
        )
    if key in swept:
        return f"the sweep sets {key!r} too (sweep.{key}): drop one of the two"
    return unknown(key) or unusable([value.plain() for value in values])


def _check_seeds(tree: Node, config: Config, tune: TuneConfig) -> None:
    """Refuse seeds for tuning that the test uses too."""
    for key, seeds, tested in (
        ("seeds", tune.seeds, "train.seed"),
        ("evaluate_seed", [tune.evaluate_seed], "evaluate.seed"),
    ):
        if wrong := unusable(list(seeds)):
            raise _error(tree, key, wrong)
        where, test_seeds = _seeds(tree, config, tested)
        both = next((seed for seed in seeds if seed in test_seeds), None)
        if both is not None:
            message = f"{both} is a test seed too ({where}): what is picked on the data or the "
            message += "runs that it is tested on looks better than it is; choose another"
            raise _error(tree, key, message)


def _error(tree: Node, key: str, message: str) -> ConfigError:
    return ConfigError(message, f"tune.{key}", tree.mark_of(("tune", key)))


def _seeds(tree: Node, config: Config, key: str) -> tuple[str, list[int]]:
    """The key that sets the test's seeds, with its place, and the seeds."""
    section, _, name = key.partition(".")
    path = ("sweep", key) if key in config.sweep else (section, name)
    seeds = config.sweep.get(key) or [getattr(getattr(config, section), name)]
    written = f", {tree.mark_of(path)}" if tree.get(*path) else ""
    return ".".join(path) + written, seeds
