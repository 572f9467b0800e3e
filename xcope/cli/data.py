"""``xcope data``: what is in a corpus, shards of it, and tokenizers of one's own."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcope import cli, invocation
from xcope.errors import FlagError
from xcope.files import expanded, write_text

if TYPE_CHECKING:
    from xcope.data import Recipe

TOKENIZE = """
xcope data tokenize books/ --tokenizer mine.json --out shards/books
xcope data tokenize web.jsonl.gz --field content --tokenizer gpt2 --out shards/web
xcope data tokenize configs/tasks/tinystories.yaml --tokenizer mine.json --out shards/stories
"""
TRAIN = """
xcope data train-tokenizer books/ --size 4096 --out mine.json
xcope data train-tokenizer configs/tasks/text.yaml --size 1024 --out code.json
"""
INFO = """
xcope data info books/
xcope data info shards/books
xcope data info configs/tasks/text.yaml task.held_out=0.05
"""


@click.group(cls=cli.Folder, examples=INFO.rstrip() + TRAIN.rstrip() + TOKENIZE)
def command() -> None:
    """Look into a corpus, tokenize it once, train a tokenizer.

    SOURCE is a text file, .jsonl or .parquet (text also as .gz or .zst), a folder or a pattern of
    these, the YAML file of a task, or a Hugging Face data set, OWNER/NAME.
    """


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that say what to read."""
    for one in reversed(
        (
            click.argument("source", metavar="SOURCE"),
            click.argument("overrides", nargs=-1, metavar="[key=value]..."),
            click.option("--glob", help="which files of a folder: '**/*.txt'"),
            click.option("--field", help="where the text is in a line of JSON or a row (text)"),
            click.option("--held-out", type=float, help="share of bytes that is held out (0.1)"),
            click.option("--config", metavar="NAME", help="of a Hugging Face data set"),
        )
    ):
        function = one(function)
    return function


@command.command("tokenize", examples=TOKENIZE)
@source_options
@click.option("--tokenizer", help="bytes, a tokenizer.json, or a model of the Hugging Face hub")
@click.option("--out", type=cli.PATH, required=True, help="folder of the shards")
@click.option("--shard-bytes", type=click.IntRange(min=1), default=2**25, show_default=True,
              help="bytes of text in a shard")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="replace shards that were made otherwise")
def tokenize(out: Path, shard_bytes: int, overwrite: bool, **said: Any) -> None:
    """Make shards of tokens once, to train on without reading SOURCE again.

    Stopped at any moment, the same command goes on. key=value changes a key of a YAML file.
    """
    from xcope.data import make_shards
    from xcope.data.corpus import shown

    recipe = recipe_of(**said)
    if recipe.shards is not None:
        raise FlagError(
            "source", f"{recipe.shards} holds shards already; xcope data info shows them"
        )
    with shown(f"into {out}") as progress:
        make_shards(
            recipe.source,
            recipe.reads,
            out,
            held_out=recipe.held_out,
            validation=recipe.validation,
            part=shard_bytes,
            overwrite=overwrite,
            progress=progress,
        )
    show(dataclasses.replace(recipe, source=dataclasses.replace(recipe.source, corpus=str(out))))
    train = invocation.command("train")
    print(f"\nNext:\n  {train} configs/experiments/text.yaml task.corpus={shlex.quote(str(out))}")


@command.command("train-tokenizer", examples=TRAIN)
@source_options
@click.option("--size", type=int, default=4096, show_default=True, help="of the vocabulary")
@click.option("--out", type=cli.PATH, required=True, help="the tokenizer.json to write")
@click.option("--overwrite", is_flag=True, help="replace a file that is there")
def train(size: int, out: Path, overwrite: bool, **said: Any) -> None:
    """Train a byte-level BPE tokenizer on what is not held out of SOURCE."""
    from xcope.data import train_tokenizer
    from xcope.data.corpus import shown, training_texts

    if out.exists() and not (overwrite and out.is_file()):
        raise FlagError("out", f"{out} is there already: --overwrite replaces a file")
    recipe = recipe_of(**said)
    with shown(f"for {out}") as progress:
        tokenizer = train_tokenizer(training_texts(recipe, progress), size)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, tokenizer.json or "")
    less = "" if tokenizer.num_tokens == size else f"; the text has no more than that, of {size:,}"
    print(f"{out}: {tokenizer.num_tokens:,} tokens{less}. Next:")
    source = shlex.quote(said["source"])
    tokenize = invocation.command("data tokenize")
    print(f"  {tokenize} {source} --tokenizer {shlex.quote(str(out))} --out shards")


@command.command("info", examples=INFO)
@source_options
@click.option("--tokenizer", help="count its tokens")
def info(**said: Any) -> None:
    """Count documents, bytes and tokens of each side of SOURCE: train, validation, held out."""
    show(recipe_of(**said))


def recipe_of(
    source: str,
    overrides: tuple[str, ...],
    glob: str | None,
    field: str | None,
    held_out: float | None,
    config: str | None,
    tokenizer: str | None = None,
) -> Recipe:
    """What the command line says of a corpus."""
    from xcope.tasks import task

    given = {"glob": glob, "field": field, "held_out": held_out, "tokenizer": tokenizer}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if source.endswith((".yaml", ".yml")):
        options = {**of_yaml(source, overrides), **options}
    elif overrides:
        raise FlagError(
            "overrides", f"{overrides[0]!r} changes a key of a YAML file, and {source!r} is none"
        )
    elif config is not None or is_dataset(source):
        options["corpus"] = {"dataset": source, **({} if config is None else {"config": config})}
    else:
        options["corpus"] = source
    recipe: Recipe = task("text", options, data=False).recipe  # type: ignore[attr-defined]
    return recipe


def of_yaml(path: str, overrides: tuple[str, ...]) -> Mapping[str, Any]:
    """The options of a task of a YAML file that are those of a corpus."""
    from xcope.config.load import read_task
    from xcope.tasks import tasks

    said = read_task(path, overrides)
    known = tasks()["text"].options().keys() - {"length", "stretch", "packed"}
    if said.name in tasks() and "corpus" not in tasks()[said.name].options():
        raise FlagError("source", f"{path}: task {said.name!r} has no corpus: it draws at random")
    return {key: value for key, value in said.options.items() if key in known}


def is_dataset(source: str) -> bool:
    """Whether a text can only be the name of a data set: OWNER/NAME, and no file."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None
    return named and not expanded(source).exists() and not Path(source).suffix


def show(recipe: Recipe) -> None:
    """Print a table of the sides."""
    from rich.console import Console
    from rich.table import Table

    from xcope.data import open_corpus
    from xcope.data.corpus import notes, shown, sizes

    with shown("to count") as progress:
        found = sizes(recipe, progress)
    total = sum(one["bytes"] for one in found.values()) or 1
    table = Table("side", title=None)
    for heading in ("documents", "bytes", "share", "tokens", "bytes per token"):
        table.add_column(heading, justify="right")
    for side, one in found.items():
        tokens = one.get("tokens")
        table.add_row(
            side,
            f"{one['documents']:,}",
            f"{one['bytes']:,}",
            f"{100 * one['bytes'] / total:.1f} %",
            "-" if tokens is None else f"{tokens:,}",
            "-" if not tokens else f"{one['bytes'] / tokens:.2f}",
        )
    console = Console(highlight=False)
    console.print(table)
    if any("tokens" in one for one in found.values()):
        corpus = open_corpus(recipe)
        kind = (
            "bytes" if corpus.tokenizer.json is None else f"sha256 {corpus.tokenizer.digest[:12]}"
        )
        console.print(f"tokenizer: {corpus.tokenizer.num_tokens:,} tokens, {kind}", markup=False)
        for note in notes(corpus):
            console.print(f"note: {note}", markup=False, soft_wrap=True)
