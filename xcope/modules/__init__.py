"""Decoders whose positions are a scheme; the seam into x-transformers is `xcope.modules.seam`."""

from xcope.modules.decoder import Decoder
from xcope.modules.flags import decoder_flags, wrapper_flags
from xcope.modules.seam import SeamError, cache_of, kept_by, logits_kept, recomputed
from xcope.modules.wrapper import AutoregressiveWrapper, TransformerWrapper, plan_of

__all__ = [
    "AutoregressiveWrapper",
    "Decoder",
    "SeamError",
    "TransformerWrapper",
    "cache_of",
    "decoder_flags",
    "kept_by",
    "logits_kept",
    "plan_of",
    "recomputed",
    "wrapper_flags",
]
