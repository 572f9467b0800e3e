"""What the scripts share: help with examples, errors in one line, exit codes.

A script ends in 0 when it did its work, 2 when its user asked for something impossible, 130 when
it was stopped; a traceback means a bug of ours.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import FrameType

from xcope.config import ConfigError
from xcope.errors import FlagError
from xcope.training import RunError

USER_ERRORS: tuple[type[Exception], ...] = (ConfigError, FlagError, RunError, OSError)


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with ``examples``, one command per line."""
    lines = textwrap.indent(textwrap.dedent(examples).strip(), "  ")
    return argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Parse the command line, call ``main``, and return the exit code.

    Args:
        argv: the arguments; None takes those of the process.
        errors: exceptions that are the user's to solve, besides `USER_ERRORS`.
    """
    # options may stand between the positional arguments: CONFIG --out DIR train.seed=1
    arguments = parser.parse_intermixed_args(argv)
    usual = signal.signal(signal.SIGTERM, _stop)
    try:
        main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader of a pipe has seen enough; Python must not complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except USER_ERRORS + errors as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, usual)
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    """SIGTERM means what Ctrl-C means."""
    raise KeyboardInterrupt
