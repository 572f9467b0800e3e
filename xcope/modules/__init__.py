"""Decoders whose positions are a scheme; the seam into x-transformers is `xcope.modules.seam`."""

from xcope.modules.decoder import Decoder
from xcope.modules.flags import decoder_flags, wrapper_flags
from xcope.modules.seam import SeamError, logits_kept
from xcope.modules.wrapper import AutoregressiveWrapper, TransformerWrapper, plan_of

__all__ = [
    "AutoregressiveWrapper",
    "Decoder",
    "SeamError",
    "TransformerWrapper",
    "decoder_flags",
    "logits_kept",
    "plan_of",
    "wrapper_flags",
]
