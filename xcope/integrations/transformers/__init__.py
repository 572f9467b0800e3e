"""Hugging Face transformers (extra ``hf``): our models as theirs, our schemes in their models."""

from typing import TYPE_CHECKING

from xcope import lazy

if TYPE_CHECKING:
    from xcope.integrations.transformers.attention import (
        add_cope,
        from_pretrained,
        position_parameters,
        remove_position,
        set_position,
    )
    from xcope.integrations.transformers.config import XCopeConfig
    from xcope.integrations.transformers.model import XCopeForCausalLM

__all__ = [
    "XCopeConfig",
    "XCopeForCausalLM",
    "add_cope",
    "from_pretrained",
    "position_parameters",
    "remove_position",
    "set_position",
]

__getattr__, __dir__ = lazy.names(__name__, __file__)
