"""What can stop a run, in words for the person who started it."""

from __future__ import annotations

from typing import ClassVar


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
