"""The page of every command, made from what ``--help`` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from xcope import cli
from xcope.cli import xcope
from xcope.markdown import code, code_block, escape, page, table


def commands_page() -> str:
    """The Markdown of ``commands.md``."""
    ctx = click.Context(xcope, info_name="xcope")
    return page(
        [
            "# Every command",
            "`xcope NAME --help` prints the same. In a clone the commands are `python "
            "scripts/NAME.py` as well, where such a file is. A command ends in 0 when it did its "
            "work, 1 when a model or a run turned out to be broken, 2 when it was asked for "
            "something impossible, 130 when it was stopped. `python scripts/docs.py` writes this "
            "page from the commands.",
            *_usage(xcope, ctx),
            *_within(xcope, ctx, "##"),
        ]
    )


def _within(group: click.Group, ctx: click.Context, level: str) -> Iterator[str]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None, name
        inner = click.Context(command, info_name=name, parent=ctx, **cli.SETTINGS)
        yield f"{level} `{inner.command_path}`"
        yield _prose(command.help or "")
        yield from _usage(command, inner)
        if isinstance(command, click.Group):
            yield from _within(command, inner, f"{level}#")
        elif isinstance(command, cli.Command) and command.examples.strip():
            yield code_block(command.examples.strip(), "sh")


def _usage(command: click.Command, ctx: click.Context) -> Iterator[str]:
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    yield code_block(usage, "text")
    options = [one for one in command.get_params(ctx) if isinstance(one, click.Option)]
    rows = [
        (*record, _default(option, ctx))
        for option in options
        if "--help" not in option.opts and (record := _record(option, ctx))
    ]
    if rows:
        yield table(("option", "meaning", "default"), rows)


def _record(option: click.Option, ctx: click.Context) -> tuple[str, str] | None:
    """The option as it is typed, and what it says of itself."""
    if option.hidden:
        return None
    metavar = "" if option.is_flag else f" {option.make_metavar(ctx)}"
    names = ", ".join([*option.opts, *option.secondary_opts])
    return code(names + metavar), escape(option.help or "")


def _default(option: click.Option, ctx: click.Context) -> str:
    value = option.get_default(ctx)
    shown = option.show_default and isinstance(value, str | int | float) and not option.is_flag
    return code(str(value)) if shown else ""


def _prose(doc: str) -> str:
    """A docstring's paragraphs; click's marks for the terminal are none here."""
    return inspect.cleandoc(doc).replace("\b\n", "").replace("\f", "").replace("``", "`")
