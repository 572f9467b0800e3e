"""Positional schemes, one file each, the registry that lists them, and plans made of them."""

from xcope.positions.base import (
    AddedToInput,
    AttendInputs,
    AttendModule,
    Draw,
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
from xcope.registry import discover

discover(__name__, __path__)

__all__ = [
    "AddedToInput",
    "AttendInputs",
    "AttendModule",
    "Draw",
    "Geometry",
    "IndexBias",
    "IndexedScheme",
    "KeyLimits",
    "Plan",
    "Position",
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
    "register",
    "scheme",
    "schemes",
    "single",
    "started",
]
