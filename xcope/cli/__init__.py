"""The commands of a shell: ``xcope NAME …``, and ``python scripts/NAME.py …`` for those of a clone.

Each command is a file of this folder with a click command called ``command``; it is imported when
it is asked for, and what takes long to import (torch, matplotlib) is imported inside it.

A command ends in 0 when it did its work, 1 when a model or a run turned out to be broken, 2 when
its user asked for something impossible or the machine could not give it (disk, memory, files), 130
when it was stopped. `xcope.errors.told` decides what is one line on stderr; a traceback means a bug
of ours. With ``XCOPE_TRACEBACK=1`` in the environment, the traceback of an error stands before its
line.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pkgutil
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from xcope import __version__, invocation
from xcope.errors import did_you_mean, told
from xcope.files import UnknownPathError, expanded
from xcope.training.errors import NoRunError


class Command(click.Command):
    """A command whose ``--help`` ends with examples.

    Args:
        examples: one command per line, as ``xcope NAME …``.
    """

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each as this process was started."""
        write_examples(self.examples, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; errors from now on are those of this command."""
        if isinstance(ctx.obj, Typed):
            ctx.obj.command = ctx.command_path
        return super().parse_args(ctx, args)


def write_examples(examples: str, formatter: click.HelpFormatter) -> None:
    """Write examples at the end of a help, each as this process was started."""
    lines = [as_started(line) for line in examples.strip().splitlines()]
    if lines:
        formatter.write("\nexamples:\n" + "".join(f"  {line}\n" for line in lines))


@dataclass
class Typed:
    """What was typed: the command as far as it is read, the innermost one of groups."""

    command: str


class Folder(click.Group):
    """A group whose commands are the modules of a package, imported when they are asked for.

    Args:
        package: ``__name__`` and ``__path__`` of the package.
        examples: as those of a `Command`.
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        package: tuple[str, Sequence[str]] | None = None,
        examples: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.package = package
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the modules, and of commands that were added."""
        found = super().list_commands(ctx)
        if self.package is not None:
            modules = (module.name for module in pkgutil.iter_modules(self.package[1]))
            found += [name for name in modules if not name.startswith("_")]
        return sorted(name.replace("_", "-") for name in found)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, from its module."""
        added = super().get_command(ctx, cmd_name)
        if added is not None or self.package is None or cmd_name not in self.list_commands(ctx):
            return added
        module = importlib.import_module(f"{self.package[0]}.{cmd_name.replace('-', '_')}")
        found: click.Command = module.command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            names = self.list_commands(ctx)
            raise click.UsageError(
                f"there is no command {name!r}: choose among {', '.join(names)}"
                f"{did_you_mean(name, names)}",
                ctx,
            )
        return super().resolve_command(ctx, args)


class PathType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A path of the command line; ``--out=~/runs`` is no path to a shell."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, with ``~`` and ``$NAME`` replaced."""
        try:
            return expanded(value)
        except UnknownPathError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[Any]:
        """Files and folders, by the shell."""
        return click.Path().shell_complete(ctx, param, incomplete)


class RunType(PathType):
    """The folder of a run that has begun."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path of the folder.

        Raises:
            NoRunError: no run has begun there.
        """
        return require_run(super().convert(value, param, ctx))


def require_run(path: Path) -> Path:
    """The folder, if a run has begun in it.

    Raises:
        NoRunError: there is none.
    """
    if not (path / "config.yaml").is_file():
        raise NoRunError(path)
    return path


class NamesType(click.ParamType):  # type: ignore[type-arg]
    """Names between commas: ``cope,rotary`` → the two.

    Args:
        choices: names that are allowed; none: all are.
    """

    name = "names"

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """The names."""
        names = value if isinstance(value, list) else value.split(",")
        names = [name for part in names if (name := part.strip())]
        for name in names if self.choices else ():
            if name not in self.choices:
                near = did_you_mean(name, self.choices)
                self.fail(f"{name!r} is none of {', '.join(self.choices)}{near}", param, ctx)
        return names


PATH = PathType()
RUN = RunType()

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: the GPU if there is one",
)
"""Where a trained model runs."""


def _trust(ctx: click.Context, param: click.Parameter, yes: bool) -> None:
    if yes:
        from xcope.plugins import trusting

        ctx.with_resource(trusting())


trust_option = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help="run the Python files that a run or config imports, whoever wrote them; XCOPE_TRUST=1 is "
    "the same",
)
"""Whether plugins run that their user has not named, see `xcope.plugins`: for every command that
reads a config or a run."""


def command(examples: str, **kwargs: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a `Command`; its docstring is the help."""
    return click.command(cls=Command, examples=examples, **kwargs)


def as_started(line: str) -> str:
    """``xcope train x.yaml`` as this process would be started for it, see `xcope.invocation`."""
    return re.sub(r"^xcope ([\w-]+)", lambda typed: invocation.command(typed[1]), line)


@click.group(cls=Folder, package=(__name__, __path__), invoke_without_command=True)
@click.option("--version", is_flag=True, help="what is installed")
@click.option("--verbose", is_flag=True, help="with --version: all that a bug report needs")
@click.pass_context
def xcope(ctx: click.Context, version: bool, verbose: bool) -> None:
    """Swap the positional encoding of a decoder, train small language models, and compare."""
    if version:
        print(f"xcope {__version__}")
        if verbose:
            from xcope.environment import report

            print(report())
        ctx.exit()
    if verbose:
        raise click.UsageError("--verbose is for --version")
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        ctx.exit(2)


def main(name: str | None = None) -> int:
    """Run what this process was started for, and return the exit code.

    Args:
        name: the command of ``scripts/NAME.py``; None for ``xcope``, which reads it from the
            arguments.
    """
    if completing := os.environ.get("_XCOPE_COMPLETE"):
        from xcope.cli._complete import complete

        return complete(completing)
    if name is None:
        one: click.Command | None = xcope
    else:
        one = xcope.get_command(click.Context(xcope), name)
    assert one is not None, name  # the scripts are ours
    # at its end Python would look through all of torch's objects once more, for most of a second
    atexit.register(gc.freeze)
    return run(one, prog=invocation.program() if name is None else None)


def run(
    command: click.Command, arguments: Sequence[str] | None = None, prog: str | None = None
) -> int:
    """Parse the command line, run the command, and return the exit code.

    Args:
        arguments: None takes those of the process.
        prog: what errors and help call it; None: the file that was started.
    """
    _ready_to_print()
    prog = prog or Path(sys.argv[0]).name
    arguments = sys.argv[1:] if arguments is None else arguments
    typed = Typed(prog)
    with _stoppable() as stopped:
        try:
            with (
                command.make_context(prog, list(arguments), obj=typed, **SETTINGS) as ctx,
                _threads_told(prog),
            ):
                command.invoke(ctx)
            sys.stdout.flush()
        except click.exceptions.Exit as end:
            return end.exit_code
        except click.ClickException as error:
            return _misused(error, prog)
        except BrokenPipeError:
            _drop_output()
        except KeyboardInterrupt:
            _complain(typed.command, "stopped")
            return 130
        except Exception as error:
            line = told(error)
            if line is None and stopped:  # a library made another error of Ctrl-C
                _complain(typed.command, "stopped")
                return 130
            if line is None:
                raise
            if os.environ.get("XCOPE_TRACEBACK"):
                traceback.print_exc()
            _complain(typed.command, f"error: {line}")
            return int(getattr(error, "exit_code", 2))
    return 0


SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of every command."""


def _misused(error: click.ClickException, prog: str) -> int:
    """Say in a line what is wrong with the command line, and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    message = " ".join(error.format_message().split())
    _complain(ctx.command_path if ctx else prog, f"error: {message[:1].lower()}{message[1:]}")
    return error.exit_code


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """SIGINT and SIGTERM raise `KeyboardInterrupt`; gives the list of those that came."""
    came: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        raise KeyboardInterrupt

    usual = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    # a script leaves Ctrl-C to the system while it loads; one that is ignored stays so
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        usual[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield came
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def _threads_told(prog: str) -> Iterator[None]:
    """What ends a thread of a library, as TensorBoard's on a full disk, is a line, too."""
    in_threads, ignored = threading.excepthook, sys.unraisablehook

    def say(error: BaseException | None) -> bool:
        line = told(error) if isinstance(error, Exception) else None
        if line is not None:
            _complain(prog, f"warning: {line}")
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


def _complain(prog: str, line: str) -> None:
    """Print a last line on stderr, and let nothing that is left in stdout fail at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    try:
        print(f"{prog}: {line}", file=sys.stderr, flush=True)
    except OSError:  # stderr is full or closed: only the exit code is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _drop_output() -> None:
    """What waits in stdout goes nowhere, else Python complains when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
