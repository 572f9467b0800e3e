"""YAML configs: composed, overridden, checked, and turned into a task and a decoder."""

from typing import TYPE_CHECKING

from xcope import lazy

if TYPE_CHECKING:
    from xcope.config.check import check_data, check_trackers
    from xcope.config.errors import ConfigError, Mark
    from xcope.config.imports import copies_for
    from xcope.config.load import build_model, build_task, load_config, read_config
    from xcope.config.schema import (
        Config,
        EvaluateConfig,
        ModelConfig,
        TaskConfig,
        TrainConfig,
        TuneConfig,
    )
    from xcope.config.sweep import expand_sweep, expand_tuning

__all__ = [
    "Config",
    "ConfigError",
    "EvaluateConfig",
    "Mark",
    "ModelConfig",
    "TaskConfig",
    "TrainConfig",
    "TuneConfig",
    "build_model",
    "build_task",
    "check_data",
    "check_trackers",
    "copies_for",
    "expand_sweep",
    "expand_tuning",
    "load_config",
    "read_config",
]

__getattr__, __dir__ = lazy.names(__name__, __file__)
