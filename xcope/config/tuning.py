"""``tune``: keys whose value is picked for each scheme of a sweep, on seeds of their own."""

from __future__ import annotations

from collections.abc import Sequence

from xcope.config.assemble import make_task
from xcope.config.errors import ConfigError
from xcope.config.schema import Config, TuneConfig
from xcope.config.sweep import combinations, sweep_axes, tree_of, unknown, unusable
from xcope.config.wording import shown
from xcope.config.yaml_tree import Node, from_plain
from xcope.errors import listing

FIXED = ("train.seed", "train.steps")
"""Keys of ``train`` that cannot be tuned: they are the protocol."""


def expand_tuning(config: Config, *, data: bool = True) -> list[Config]:
    """The config of every tuning run.

    One for each combination of the sweep but for its training seeds, each combination of the
    values to try, and each tuning seed; the last changes fastest. A tuning run has the seeds and
    the steps that ``tune`` says, and is measured in distribution alone.

    Args:
        data: see `expand_sweep`.

    Raises:
        ConfigError: nothing to try, a key that cannot be tuned or that the sweep sets, seeds that
            are those of the test, a run that cannot be built.
    """
    tune = config.tune
    if tune is None:
        return []
    tree = tree_of(config)
    axes = sweep_axes(tree)
    axes.pop("train.seed", None)
    _check_seeds(tree, config, tune)
    axes |= _grid(tree, tune, axes)
    axes["train.seed"] = [from_plain(seed, tree.mark_of(("tune", "seeds"))) for seed in tune.seeds]
    return [_tuned(run, tune) for run in combinations(tree, axes, "the tuning run", data)]


def _tuned(run: Config, tune: TuneConfig) -> Config:
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
    """What is wrong with a key to tune, if anything is."""
    if not key.startswith("train.") or key in FIXED:
        return (
            f"{key!r} cannot be tuned; allowed: {listing(TuneConfig.model_fields)} and the keys "
            f"of 'train' but {listing(FIXED)}, for instance 'train.lr'"
        )
    if key in swept:
        return f"the sweep sets {key!r} too (sweep.{key}): drop one of the two"
    return unknown(key) or unusable([value.plain() for value in values])


def _check_seeds(tree: Node, config: Config, tune: TuneConfig) -> None:
    """Refuse to pick a value on what it will be tested on."""
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
    """Which key sets the seeds of the test (and where it stands), and the seeds."""
    section, _, name = key.partition(".")
    path = ("sweep", key) if key in config.sweep else (section, name)
    seeds = config.sweep.get(key) or [getattr(getattr(config, section), name)]
    written = f", {tree.mark_of(path)}" if tree.get(*path) else ""
    return ".".join(path) + written, seeds
