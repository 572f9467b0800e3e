"""How tests name schemes: each with the options that its YAML file gives it."""

import copy
import pathlib
from functools import cache

import yaml

import xcope
from xcope.positions import Slot, parse
from xcope.positions.base import Geometry

ROOT = pathlib.Path(__file__).parents[1]
NAMES = list(xcope.schemes())
SHORT = {"window": {"size": 6}}
"""For texts as short as those of tests."""


@cache
def written(name):
    """What ``position`` says in configs/schemes/<name>.yaml."""
    text = (ROOT / "configs" / "schemes" / f"{name}.yaml").read_text()
    position = yaml.safe_load(text)["model"]["position"]
    return {"name": position} if isinstance(position, str) else position


def position(name, **options):
    """What ``position`` says in configs/schemes/<name>.yaml, and further options."""
    return copy.deepcopy(written(name)) | SHORT.get(name, {}) | options


@cache
def modules_of(name):
    """Classes of what fills the slots: schemes that share them differ in numbers only."""
    geometry = Geometry(dim=64, heads=2, dim_head=32, max_seq_len=64)
    parts = parse(position(name)).schemes
    apart = (Slot.INPUT, Slot.ROTATION)
    meeting = [one for one in parts if one.slot not in apart] if len(parts) > 1 else parts
    built = [one.build(geometry) for one in meeting]
    traits = ("length_dependent", "scales", "widens", "remembers", "gives_terms", "gate_keys")
    return tuple((type(m), *(getattr(m, trait, None) for trait in traits)) for m in built)


@cache
def kind_of(name):
    """The first of the schemes that build modules of the same classes.

    A combination is what it is without what is added to the input, or turns q and k: these do not
    meet the others.
    """
    modules = modules_of(name)
    return next(other for other in NAMES if modules_of(other) == modules)


KINDS = list(dict.fromkeys(map(kind_of, NAMES)))
