"""How tests name schemes: each with the options that its YAML file gives it."""

import pathlib

import yaml

import xcope

ROOT = pathlib.Path(__file__).parents[1]
NAMES = list(xcope.schemes())
SHORT = {"window": {"size": 6}}
"""For texts as short as those of tests."""


def position(name, **options):
    """What ``position`` says in configs/schemes/<name>.yaml, and further options."""
    text = (ROOT / "configs" / "schemes" / f"{name}.yaml").read_text()
    written = yaml.safe_load(text)["model"]["position"]
    written = {"name": written} if isinstance(written, str) else written
    return written | SHORT.get(name, {}) | options
