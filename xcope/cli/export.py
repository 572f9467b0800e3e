"""``xcope export``: a trained model as a file for others."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from xcope import cli
from xcope.errors import FlagError

WRITERS = {
    "hf": "xcope.integrations.transformers.export:export",
    "x-transformers": "xcope.integrations.export:to_x_transformers",
    "torch-export": "xcope.integrations.export:to_torch_export",
}
"""What ``--to`` takes → the function that writes it: of a run's folder, the path to write, and
whether to overwrite; it returns the lines that tell how to use it."""

EXAMPLES = """
xcope export runs/cope --to hf cope-model
xcope export runs/cope --to x-transformers cope.safetensors
xcope export runs/cope --to torch-export cope.pt2
"""


@cli.command(EXAMPLES)
@click.argument("run", type=cli.PATH)
@click.argument("path", type=cli.PATH)
@click.option("--to", "kind", type=click.Choice([*WRITERS]), required=True, help="for whom")
@click.option("--overwrite", is_flag=True, help="replace what is at PATH")
@cli.trust_option
def command(run: Path, path: Path, kind: str, overwrite: bool) -> None:
    """Write a trained model in the form of another library.

    \b
    hf              a folder for Hugging Face transformers: weights, tokenizer, model card
    x-transformers  weights and flags, a safetensors file: no xcope is needed to use it
    torch-export    a program for batches and texts of any size

    RUN is the folder of a run, PATH what is written. How it is used is printed.
    """
    module, _, name = WRITERS[kind].partition(":")
    try:
        write = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise FlagError(
            "to", f'--to {kind} needs the library {error.name}: pip install "xcope[hf]"'
        ) from error
    lines = write(run, path, overwrite=overwrite)
    print(f"wrote {path}", *(f"  {line}".rstrip() for line in lines), sep="\n")
