"""`build_task` and `build_model`: what a config describes, ready to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcope.config.assemble import make_model_for, make_task
from xcope.config.load import as_config
from xcope.config.schema import Config
from xcope.modules import TransformerWrapper
from xcope.tasks import Task


def build_task(config: Config | Mapping[str, Any] | str | Path) -> Task:
    """The task of a config, a mapping of the same shape, or a YAML file.

    Of a `Config` its data are read when the first batch is drawn.

    Raises:
        ConfigError: a file or mapping that cannot be used.
    """
    return make_task(as_config(config).task)


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
    config = as_config(config)
    return make_model_for(config.model, make_task(config.task))
