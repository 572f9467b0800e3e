"""Positional schemes, one file each, and the registry that lists them."""

from xcope.discovery import discover
from xcope.positions.base import AddedToInput, Geometry, Scheme, Slot, token_positions
from xcope.positions.registry import (
    Position,
    SchemeTable,
    check_together,
    expand,
    parse,
    register,
    scheme,
    schemes,
)

discover(__name__, __path__)

__all__ = [
    "AddedToInput",
    "Geometry",
    "Position",
    "Scheme",
    "SchemeTable",
    "Slot",
    "check_together",
    "expand",
    "parse",
    "register",
    "scheme",
    "schemes",
    "token_positions",
]
