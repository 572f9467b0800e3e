"""Configs of runs of a few updates on a task of six tokens."""

from pathlib import Path

import pytest
import yaml
from training_runs import TINY, MakeConfig

from xcope.config import Config, load_config


@pytest.fixture
def tiny(tmp_path: Path) -> MakeConfig:
    """``tiny("train.seed=1", …)``: a small run with overrides."""

    def make(*overrides: str) -> Config:
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(TINY))
        return load_config(file, overrides)

    return make
