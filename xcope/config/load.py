"""`load_config`: a YAML file, what it extends and the command line's overrides → a `Config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xcope.config.check import checked, typed
from xcope.config.compose import compose
from xcope.config.errors import ConfigError, Mark
from xcope.config.overrides import override
from xcope.config.schema import Config
from xcope.config.sweep import check_overrides, expand_sweep
from xcope.config.tuning import expand_tuning
from xcope.config.yaml_tree import Node, from_plain


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, sweep: bool = False, data: bool = True
) -> Config:
    """Read, compose, override and check a config.

    All that can go wrong before training is found here: the task is made, and every model is built
    without weights.

    Args:
        path: a YAML file.
        overrides: ``"train.lr=3e-4"``; later ones win.
        sweep: allow ``sweep:``; then see `expand_sweep` and `expand_tuning`.
        data: read the data of the task, to see that they suffice; without, see `check_data`.

    Raises:
        ConfigError: names file (or command line), line and key.
    """
    tree = override(compose(path), overrides)
    config = typed(tree)
    if not config.sweep:
        if config.tune is not None:
            raise ConfigError(
                "values are picked for the runs of a sweep, and there is none: add a sweep, or "
                "drop this with tune=null",
                "tune",
                tree.mark_of(("tune",)),
            )
        return checked(tree, data=data)
    if not sweep:
        raise ConfigError(
            "a sweep is many runs, but this is for one: use scripts/compare.py, or drop the sweep "
            "with sweep=null",
            "sweep",
            tree.mark_of(("sweep",)),
        )
    check_overrides(tree, overrides)
    expand_sweep(config, data=data)
    expand_tuning(config, data=data)
    return config


def read_config(path: str | Path) -> Config:
    """A resolved config, as a run folder holds it; neither task nor model is made.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a wrong type.
    """
    return typed(compose(path))


def as_config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    """The config of one run, from a file or a mapping if it is none yet.

    Raises:
        ConfigError: as `load_config`.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        tree: Node = from_plain(config, Mark("config"))
        return checked(tree)
    return load_config(config)
