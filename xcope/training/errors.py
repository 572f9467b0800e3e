"""What can stop a run, in words for the person who started it."""

from __future__ import annotations

from typing import ClassVar

from safetensors import SafetensorError

from xcope.config import ConfigError
from xcope.errors import FlagError

MEMORY_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Storage size calculation overflowed",
    "invalid size, maximum",
)
"""How PyTorch, CUDA and the system say that a tensor does not fit; they raise RuntimeError."""


class RunError(Exception):
    """A run folder, checkpoint or request that cannot be used as it is."""

    exit_code: ClassVar[int] = 2
    """What a script that ends with this error returns to the shell."""


class RunInterruptedError(RunError):
    """Ctrl-C or SIGTERM: a checkpoint was saved, and the message says how to go on."""

    exit_code = 130


class RunDivergedError(RunError):
    """The loss or a gradient became infinite or NaN; the last checkpoint is untouched."""

    exit_code = 1


class BrokenModelError(RunError):
    """A model whose weights, logits or loss are not finite; the message says which."""

    exit_code = 1


USER_ERRORS: tuple[type[Exception], ...] = (ConfigError, FlagError, RunError)


def told(error: Exception, errors: tuple[type[Exception], ...] = ()) -> str | None:
    """What a person reads of an error, one line or a few; None for a bug of ours.

    Args:
        errors: further exceptions whose own words are for people.
    """
    text = str(error)
    if isinstance(error, USER_ERRORS + errors):
        return text
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in MEMORY_WORDS)
    ):
        first = text.partition("\n")[0]
        return f"there is not enough memory: smaller batches, lengths or models need less. {first}"
    if isinstance(error, OSError):
        return text or type(error).__name__
    if isinstance(error, SafetensorError):  # its own words name no file, but the reason
        return f"a file of tensors cannot be written or read: {text}"
    if isinstance(error, UnicodeError):
        return f"text that cannot be read or written as it is: {text}"
    return None
