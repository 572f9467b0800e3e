"""Hugging Face transformers (extra ``hf``): our models as theirs, our schemes in their models."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "XCopeConfig": "config",
    "XCopeForCausalLM": "model",
    "add_cope": "attention",
    "from_pretrained": "attention",
    "position_parameters": "attention",
    "remove_position": "attention",
    "set_position": "attention",
}
"""Public name → the file that has it, imported when it is asked for."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
