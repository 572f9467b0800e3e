"""What can stop a run, in words for the person who started it."""

from __future__ import annotations

from pathlib import Path

from xcope.errors import ToldError


class RunError(ToldError):
    """A run folder, checkpoint or request that cannot be used as it is."""


class NoRunError(RunError):
    """A folder in which no run has begun.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a run folder: it has no config.yaml")


class RunInterruptedError(RunError):
    """Ctrl-C or SIGTERM: a checkpoint was saved, and the message says how to go on."""

    exit_code = 130


class RunDivergedError(RunError):
    """The loss or a gradient became infinite or NaN; the last checkpoint is untouched."""

    exit_code = 1


class BrokenModelError(RunError):
    """A model whose weights, logits or loss are not finite; the message says which."""

    exit_code = 1
