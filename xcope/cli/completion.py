"""``xcope completion``: what a shell evaluates to complete commands, options, files and keys."""

from __future__ import annotations

import click

from xcope import cli
from xcope.cli import _complete

EXAMPLES = """
eval "$(xcope completion bash)"                 # in ~/.bashrc
eval "$(xcope completion zsh)"                  # in ~/.zshrc
xcope completion fish > ~/.config/fish/completions/xcope.fish
"""


@cli.command(EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the code that makes SHELL complete what follows xcope.

    Commands, options, files, packaged configs, keys (model.position=) and their values.
    """
    print(_complete.source(shell))
