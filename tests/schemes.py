"""How tests name schemes: each with the options that its YAML file gives it."""

import pathlib

import yaml

import xcope

ROOT = pathlib.Path(__file__).parents[1]
NAMES = list(xcope.schemes())


def position(name, **options):
    """What ``position`` says in configs/schemes/<name>.yaml, and further options."""
    text = (ROOT / "configs" / "schemes" / f"{name}.yaml").read_text()
    written = yaml.safe_load(text)["model"]["position"]
    return ({"name": written} if isinstance(written, str) else written) | options
