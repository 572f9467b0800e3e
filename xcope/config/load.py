"""From a YAML file, or a mapping, to a checked `Config`, a task and a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcope import files, invocation, lazy
from xcope.config.compose import compose, override
from xcope.config.errors import ConfigError, Mark
from xcope.config.imports import with_plugins
from xcope.config.yaml_tree import Node, from_plain

if TYPE_CHECKING:
    from xcope.config.schema import Config, TaskConfig
    from xcope.modules import TransformerWrapper
    from xcope.tasks import Task


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    sweep: bool = False,
    data: bool = True,
    build: bool = True,
) -> Config:
    """Read, compose, override and check a config.

    All that can go wrong before training is found here: the task is made, and every model is built
    without weights.

    Args:
        path: a YAML file.
        overrides: ``"train.lr=3e-4"``; later ones win.
        sweep: allow ``sweep:``; then see `expand_sweep` and `expand_tuning`.
        data: read the data of the task, to see that they suffice; without, see `check_data`.
        build: make the tasks and models of a sweep; without, only names and types are checked, and
            `expand_sweep` and `expand_tuning` do the rest.

    Raises:
        ConfigError: names file (or command line), line and key.
    """
    tree = with_plugins(override(compose(path), overrides), files.expanded(path))
    from xcope.config.sweep import check_overrides, check_sweep_names, expand_sweep, expand_tuning
    from xcope.config.typed import typed

    config = typed(tree)
    if not config.sweep:
        if config.tune is not None:
            raise ConfigError(
                "values are picked for the runs of a sweep, and there is none: add a sweep, or "
                "drop this with tune=null",
                "tune",
                tree.mark_of(("tune",)),
            )
        return _checked(tree, config, data=data)
    if not sweep:
        raise ConfigError(
            f"a sweep is many runs, but this is for one: use {invocation.command('compare')}, or "
            "drop the sweep with sweep=null",
            "sweep",
            tree.mark_of(("sweep",)),
        )
    check_overrides(tree, overrides)
    if not build:
        check_sweep_names(config)
        return config
    expand_sweep(config, data=data)
    expand_tuning(config, data=data)
    return config


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A resolved config, as a run folder holds it; neither task nor model is made.

    What it imports is not taken for what its reader has named, see `xcope.plugins`.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a wrong type; a plugin that may not
            run.
    """
    tree = with_plugins(override(compose(path), overrides))
    from xcope.config.typed import typed

    return typed(tree)


def read_task(path: str | Path, overrides: Sequence[str] = ()) -> TaskConfig:
    """The section ``task`` of a YAML file, which need not have others; the task is not made.

    Raises:
        ConfigError: a file that cannot be read, no task, an unknown key, a wrong type.
    """
    from xcope.config.typed import typed

    tree = override(compose(path), overrides)
    entries = {key: node for key, node in tree.children.items() if key == "task"}

    anything = from_plain({"dim": 1, "depth": 1}, tree.mark)
    return typed(Node({**entries, "model": anything}, tree.mark)).task


def build_task(config: Config | Mapping[str, Any] | str | Path) -> Task:
    """The task of a config, a mapping of the same shape, or a YAML file.

    Of a `Config` its data are read when the first batch is drawn.

    Raises:
        ConfigError: a file or mapping that cannot be used.
    """
    from xcope.config.build import make_task

    return make_task(_as_config(config).task)


def build_model(config: Config | Mapping[str, Any] | str | Path) -> TransformerWrapper:
    """The decoder of a config, a mapping of the same shape, or a YAML file, with fresh weights.

    Token ids (b n) in, logits (b n num_tokens) out; weights come from torch's global generator.

        build_model({
            "model": {"dim": 64, "depth": 2, "heads": 4, "position": "cope"},
            "task": {"name": "flip_flop"},
        })

    Raises:
        ConfigError: a file or mapping that cannot be used.
    """
    from xcope.config.build import make_model_for, make_task

    config = _as_config(config)
    return make_model_for(config.model, make_task(config.task))


def _as_config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    """The config of one run, from a file or a mapping if it is none yet.

    Raises:
        ConfigError: as `load_config`.
    """
    from xcope.config.schema import Config
    from xcope.config.typed import typed

    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        tree = with_plugins(from_plain(config, Mark("config")))
        return _checked(tree, typed(tree))
    return load_config(config)


def _checked(tree: Node, config: Config, *, data: bool = True) -> Config:
    """The config of one run, tried: see `xcope.config.check.checked`."""
    from xcope.config.typed import check_names

    check_names(tree, config)
    with lazy.importing():
        from xcope.config.check import checked

    return checked(tree, data=data)
