"""Positional schemes, one file each, the registry that lists them, and plans made of them."""

from xcope.positions.base import (
    AddedToInput,
    AttendInputs,
    AttendModule,
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
    draw_places,
    draw_places_of_documents,
)
from xcope.positions.plan import Plan, Position, clash, combined, entries, parse, single
from xcope.positions.registry import SchemeTable, register, scheme, schemes
from xcope.positions.released import Preset, presets
from xcope.registry import discover

discover(__name__, __path__)

__all__ = [
    "AddedToInput",
    "AttendInputs",
    "AttendModule",
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
    "draw_places",
    "draw_places_of_documents",
    "entries",
    "parse",
    "presets",
    "register",
    "scheme",
    "schemes",
    "single",
]
