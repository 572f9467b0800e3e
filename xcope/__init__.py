"""xcope: swap the positional encoding of a decoder by one flag or one line of YAML."""

import importlib
from typing import TYPE_CHECKING, Any

from xcope.config import build_model, load_config
from xcope.modules import AutoregressiveWrapper, Decoder, TransformerWrapper
from xcope.ops.cope import cope_attention
from xcope.positions import schemes
from xcope.positions.cope import CoPE

if TYPE_CHECKING:
    from xcope.compare.frame import results
    from xcope.training import load_run

__version__ = "0.1.0"


LATER = {"load_run": "xcope.training", "results": "xcope.compare.frame"}
"""Names whose modules take long to import → these modules."""


def __getattr__(name: str) -> Any:
    """``xcope.inspect`` and `LATER`, when they are asked for."""
    if name == "inspect":
        return importlib.import_module("xcope.inspect")
    if name in LATER:
        return getattr(importlib.import_module(LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AutoregressiveWrapper",
    "CoPE",
    "Decoder",
    "TransformerWrapper",
    "__version__",
    "build_model",
    "cope_attention",
    "load_config",
    "load_run",
    "results",
    "schemes",
]
