"""Positional schemes, one file each, the registry that lists them, and plans made of them."""

from xcope.positions.base import (
    AddedToInput,
    AttendInputs,
    AttendModule,
    Draw,
    Family,
    Geometry,
    IndexBias,
    IndexedScheme,
    KeyLimits,
    QueryScale,
    Rotation,
    Scheme,
    Sinks,
    Slot,
)
from xcope.positions.plan import (
    Plan,
    Position,
    clash,
    combined,
    entries,
    parse,
    single,
    started,
)
from xcope.positions.registry import SchemeTable, register, scheme, schemes
from xcope.positions.released import Preset, presets
from xcope.registry import discover

discover(__name__, __path__)

__all__ = [
    "AddedToInput",
    "AttendInputs",
    "AttendModule",
    "Draw",
    "Family",
    "Geometry",
    "IndexBias",
    "IndexedScheme",
    "KeyLimits",
    "Plan",
    "Position",
    "Preset",
    "QueryScale",
    "Rotation",
    "Scheme",
    "SchemeTable",
    "Sinks",
    "Slot",
    "clash",
    "combined",
    "entries",
    "parse",
    "presets",
    "register",
    "scheme",
    "schemes",
    "single",
    "started",
]
