"""What can stop a comparison, in words for the person who started it."""

from __future__ import annotations

from xcope.training import RunError


class CompareError(RunError):
    """A comparison that cannot be made as asked; the message says what to change."""


class CompareInterruptedError(CompareError):
    """Ctrl-C or SIGTERM: the runs in hand saved a checkpoint, and the message says how to go on."""

    exit_code = 130


class CompareFailedError(CompareError):
    """Some runs failed; the report says which and why."""

    exit_code = 1
