"""xcope: swap the positional encoding of a decoder by one flag or one line of YAML."""

from typing import TYPE_CHECKING

from xcope import integrations, lazy

if TYPE_CHECKING:
    from xcope.compare.frame import results
    from xcope.config import build_model, load_config
    from xcope.modules import AutoregressiveWrapper, Decoder, TransformerWrapper
    from xcope.ops.cope import cope_attention
    from xcope.positions import schemes
    from xcope.positions.cope import CoPE
    from xcope.training import load_run

__version__ = "0.1.0"

integrations.announce()  # transformers' Auto classes learn of our models

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

__getattr__, __dir__ = lazy.names(
    __name__,
    __file__,
    submodules=[
        "compare",
        "config",
        "inspect",
        "integrations",
        "modules",
        "ops",
        "positions",
        "tasks",
        "training",
    ],
)
