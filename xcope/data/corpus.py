"""A corpus opened: from memory where it is small, else from shards that are made once."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from xcope.data.documents import PACKED, TABLES, TRAIN, Piece, Source
from xcope.data.shards import (
    Progress,
    Shards,
    Tally,
    in_memory,
    is_shards,
    make_shards,
    open_shards,
    tokenizer_of,
    told,
)
from xcope.data.sides import Split, Survey
from xcope.data.tokenizer import Tokenizer, load_tokenizer
from xcope.errors import FlagError

IN_MEMORY = 2**26
"""Bytes of files that are read anew by each process; of larger ones shards are made."""
DEARER = 16
"""How many times as long a byte takes with a tokenizer, and about as it is where packed."""

FED = 2**13
"""Letters, about, of a text that a tokenizer is trained on at once."""

Corpus = Shards


@dataclass(frozen=True)
class Recipe:
    """Everything that a corpus follows from.

    Args:
        source: its documents; a folder of shards is one that was made before.
        tokenizer: see `load_tokenizer`; None: bytes, or that of the shards.
        held_out: share of bytes that is held out.
        validation: share of these that is for validation.
    """

    source: Source
    tokenizer: str | None
    held_out: float
    validation: float

    @property
    def shards(self) -> Path | None:
        """The folder of shards that the source is; None for other corpora."""
        corpus = self.source.corpus
        return Path(corpus) if isinstance(corpus, str) and is_shards(corpus) else None

    @property
    def reads(self) -> Tokenizer:
        """The tokenizer; the corpus may be gone.

        Raises:
            FlagError: there is none, or it cannot be read (flag ``tokenizer``).
        """
        if self.tokenizer is None and self.shards is not None:
            return tokenizer_of(self.shards)
        return load_tokenizer(self.tokenizer)

    @property
    def key(self) -> str:
        """The same for recipes that say the same."""
        source = self.source
        said = [source.corpus, source.glob, source.field, sorted(source.left_out)]
        return json.dumps([*said, self.tokenizer, self.held_out, self.validation])


def open_corpus(recipe: Recipe) -> Corpus:
    """The tokens of each side; read once per process, the last few are kept.

    Raises:
        FlagError: a corpus, a field or a tokenizer that cannot be used; the flag says which.
    """
    folder = recipe.shards
    changed = (
        max((path.stat().st_mtime_ns for path in folder.iterdir()), default=0) if folder else 0
    )
    key = (recipe.key, changed)
    if key not in _OPENED:
        _OPENED[key] = _of_shards(folder, recipe.tokenizer) if folder else _made(recipe)
        while len(_OPENED) > KEPT:
            del _OPENED[next(iter(_OPENED))]
    return _OPENED[key]


def notes(corpus: Corpus) -> list[str]:
    """What a person should know of a corpus before anything is trained on it."""
    found = []
    if corpus.about.get("empty"):
        found.append(f"{corpus.about['empty']} documents of the corpus are empty")
    if corpus.about.get("changes"):
        sent, back = corpus.about["changes"]
        found.append(
            f"the tokenizer changes the text ({sent!r} comes back as {back!r}): its bits per byte "
            "are those of what it keeps, and do not compare with others'"
        )
    return found


def sizes(recipe: Recipe, progress: Progress) -> dict[str, dict[str, int]]:
    """Side → its documents, bytes, and tokens where it takes no long to count them."""
    if recipe.shards is not None or _small(recipe.source, recipe.reads):
        corpus = open_corpus(recipe)
        return {
            side: {**asdict(one), "tokens": len(corpus.streams[side])}
            for side, one in corpus.sides.items()
        }
    tally = Tally()
    for side, piece in _sided(recipe, progress):
        tally.add(side, piece)
    return {side: asdict(one) for side, one in tally.sides().items()}


def training_texts(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """The text to train on, some lines at a time; nothing that is held out.

    The library that counts its words keeps hundreds of these texts at once, so they are short.
    """
    for side, piece in _sided(recipe, progress):
        lines: list[str] = []
        size = 0
        for line in piece.text.decode().splitlines(keepends=True) if side == TRAIN else ():
            lines.append(line)
            size += len(line)
            if size >= FED:
                yield "".join(lines)
                lines, size = [], 0
        if lines:
            yield "".join(lines)


def _sided(recipe: Recipe, progress: Progress) -> Iterator[tuple[str, Piece]]:
    source = recipe.source
    pieces = told(source.pieces(), progress, "reading", source.size())
    survey = Survey.of(pieces, recipe.held_out)
    split = Split(survey, recipe.held_out, recipe.validation)
    yield from split.sided(told(source.pieces(), progress, "reading again", survey.bytes))


KEPT = 8
_OPENED: dict[tuple[str, int], Corpus] = {}


def _of_shards(folder: Path, name: str | None) -> Corpus:
    shards = open_shards(folder)
    if name is not None and load_tokenizer(name).digest != shards.tokenizer.digest:
        made = "bytes" if shards.tokenizer.json is None else f"{folder}/tokenizer.json"
        raise FlagError(
            "tokenizer",
            f"tokenizer={name!r} is not the one that the shards in {folder} were made with: leave "
            f"it out, which takes {made}, or make other shards",
        )
    return shards


def _made(recipe: Recipe) -> Corpus:
    source, tokenizer = recipe.source, recipe.reads
    if _small(source, tokenizer):
        return in_memory(source, tokenizer, recipe.held_out, recipe.validation)
    content = json.dumps([source.signature(), recipe.key, tokenizer.digest])
    folder = cache() / hashlib.sha256(content.encode()).hexdigest()[:20]
    with shown(f"into {folder}, once") as progress:
        return make_shards(
            source,
            tokenizer,
            folder,
            held_out=recipe.held_out,
            validation=recipe.validation,
            progress=progress,
        )


def _small(source: Source, tokenizer: Tokenizer) -> bool:
    if source.dataset:
        return False
    weight = 0
    for one in source.files:
        dear = tokenizer.json is not None or one.path.suffix in (*PACKED, *TABLES)
        weight += one.path.stat().st_size * (DEARER if dear else 1)
    return weight <= IN_MEMORY


def cache() -> Path:
    """The folder of shards that are made by the way: ``$XCOPE_CACHE``, else ``xcope`` in the user's
    cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("XCOPE_CACHE") or os.path.join(base, "xcope")) / "shards"


@contextmanager
def shown(where: str) -> Iterator[Progress]:
    """Progress on stderr: a bar on a terminal, else a line for what begins."""
    console = Console(file=sys.stderr, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn())
    begun: dict[str, Any] = {}
    with Bars(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bars:

        def progress(what: str, done: int, total: int | None) -> None:
            if what not in begun:
                begun[what] = bars.add_task(what, total=total)
                if not console.is_terminal:
                    size = "" if total is None else f" {total:,} bytes"
                    console.print(f"{what}{size} {where}", soft_wrap=True)
            bars.update(begun[what], completed=done)

        yield progress
