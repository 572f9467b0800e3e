"""What the scripts share: help with examples, errors in one line, exit codes.

A script ends in 0 when it did its work, 1 when a model or a run turned out to be broken, 2 when
its user asked for something impossible or the machine could not give it (disk, memory, files), 130
when it was stopped. `xcope.training.errors.told` decides what is one line on stderr; a traceback
means a bug of ours. With ``XCOPE_TRACEBACK=1`` in the environment, the traceback of an error stands
before its line.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from xcope.files import UnknownPathError, expanded
from xcope.training.errors import told


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with ``examples``, one command per line."""
    lines = textwrap.indent(textwrap.dedent(examples).strip(), "  ")
    return argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def path(text: str) -> Path:
    """A path of the command line, for argparse; ``--out=~/runs`` is no path to a shell."""
    try:
        return expanded(text)
    except UnknownPathError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Parse the command line, call ``main``, and return the exit code.

    Args:
        argv: the arguments; None takes those of the process.
        errors: exceptions whose words are for people, besides those of `told`.
    """
    _ready_to_print()
    # options may stand between the positional arguments: CONFIG --out DIR train.seed=1
    arguments = parser.parse_intermixed_args(argv)
    usual = {signal.SIGTERM: signal.signal(signal.SIGTERM, _stop)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # a script sets it while it loads
        usual[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _threads_told(parser):
            main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except KeyboardInterrupt:
        _complain(parser, "stopped")
        return 130
    except Exception as error:
        line = told(error, errors)
        if line is None:
            raise
        if os.environ.get("XCOPE_TRACEBACK"):
            traceback.print_exc()
        _complain(parser, f"error: {line}")
        return int(getattr(error, "exit_code", 2))
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    return 0


@contextmanager
def _threads_told(parser: argparse.ArgumentParser) -> Iterator[None]:
    """What ends a thread of a library, as TensorBoard's on a full disk, is a line, too."""
    in_threads, ignored = threading.excepthook, sys.unraisablehook

    def say(error: BaseException | None) -> bool:
        line = told(error) if isinstance(error, Exception) else None
        if line is not None:
            _complain(parser, f"warning: {line}")
        return line is not None

    threading.excepthook = lambda args: None if say(args.exc_value) else in_threads(args)
    sys.unraisablehook = lambda args: None if say(args.exc_value) else ignored(args)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = in_threads, ignored


def _ready_to_print() -> None:
    """Let no letter that a terminal lacks, and no closed stdout or stderr, be an error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the process was started with it closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _complain(parser: argparse.ArgumentParser, line: str) -> None:
    """Print a last line on stderr, and let nothing that is left in stdout fail at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    try:
        print(f"{parser.prog}: {line}", file=sys.stderr, flush=True)
    except OSError:  # stderr is full or closed: only the exit code is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _drop_output() -> None:
    """What waits in stdout goes nowhere, else Python complains when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(signum: int, frame: FrameType | None) -> None:
    """SIGTERM means what Ctrl-C means."""
    raise KeyboardInterrupt
