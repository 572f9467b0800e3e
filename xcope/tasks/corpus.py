"""Tasks on real text, and where the text comes from (`xcope.data`).

The corpus is Python's own standard library, found on the machine, so nothing is downloaded; it
differs a little between Python versions and so do the numbers. Files, tables and data sets of one's
own can be named instead. Documents are split into training and held-out text by a hash and their
share of bytes (`xcope.data.sides`); the standard library is split as it always was. The first third
of the held-out text is for validation: no test sees it.
"""

from __future__ import annotations

import dataclasses
import functools
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from xcope.data import Corpus, Recipe, Source, Tokenizer, open_corpus
from xcope.data.corpus import notes
from xcope.data.documents import HELD_OUT, SIDES, TRAIN, VALIDATION, check_keys
from xcope.errors import FlagError
from xcope.files import IsPath, UnknownPathError, located
from xcope.tasks.base import Task

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
"""Folders of the standard library that are skipped: installed packages, and tests, which not
every machine has."""
MOST_BYTES = 2**28
"""Of a side that is needed in memory as a whole."""

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".txt", ".arrow", ".gz", ".zst")


DATA_FILES = IsPath(or_name=True, suffixes=SUFFIXES)
PATHS = IsPath(
    keys={
        **dict.fromkeys(SIDES, IsPath(unless="dataset")),
        "dataset": IsPath(or_name=True),
        "data_files": IsPath(
            or_name=True,
            suffixes=SUFFIXES,
            keys=dict.fromkeys(("train", "validation", "test"), DATA_FILES),
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class CorpusTask(Task):
    """A task on real text; every test is on held-out text.

    The corpus is read once per process, when the first such task is made.

    Args:
        corpus: a folder, a file, or a pattern of files; a list of these; separate files for the
            sides, ``{train: …, validation: …, held_out: …}``; a folder of shards that ``xcope data
            tokenize`` made; or a Hugging Face data set, ``{dataset: NAME, config: …, train: SPLIT,
            held_out: SPLIT, …}`` (`xcope.data.Source`). In a YAML file relative to that file's
            folder, else to the working folder, with ``~`` and ``$NAME`` replaced. None: the
            standard library without tests and installed packages. Each text file, each line of
            ``.jsonl`` and each row of a table is a document; a single one is cut in two, its end
            held out.
        glob: the files of a folder, as `pathlib.Path.glob` understands it; ``**/`` includes
            subfolders. None: all but hidden ones, of the standard library ``**/*.py``.
        field: where the text is in a line of JSON or a row of a table.
        held_out: share of the bytes that is held out, between 0 and 1; documents are held out
            whole, at least one. Nothing to say where the corpus has its own split, or is shards.
        validation_share: share of the held-out bytes, at their beginning, that is for validation.
    """

    corpus: Annotated[str | list[str] | dict[str, Any], PATHS] | None = dataclasses.field(
        default=None, hash=False
    )
    glob: str | None = None
    field: str = "text"
    held_out: float = 0.1
    validation_share: float = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.held_out < 1, "held_out", "a share between 0 and 1")
        share = 0 < self.validation_share < 1
        self.require(share, "validation_share", "a share between 0 and 1")
        self.require(self.corpus not in ([], {}), "corpus", "a file, a folder, or a list of these")
        if isinstance(self.corpus, Mapping):
            check_keys(self.corpus)

    @property
    def recipe(self) -> Recipe:
        """What the text of each side follows from.

        Raises:
            FlagError: a path with a user or a variable that is not there (flag ``corpus``).
        """
        return Recipe(self._source(), None, self.held_out, self.validation_share)

    def _source(self) -> Source:
        if self.corpus is None:
            root = sysconfig.get_paths()["stdlib"]
            return Source(root, self.glob or "**/*.py", self.field, LEFT_OUT)
        try:
            return Source(_located(self.corpus), self.glob, self.field)
        except UnknownPathError as error:
            raise FlagError("corpus", f"corpus={self.corpus!r} cannot be read: {error}") from error

    @functools.cached_property
    def opened(self) -> Corpus:
        """The tokens of each side.

        Raises:
            FlagError: a corpus that cannot be read; the flag is the option that is to blame.
        """
        return open_corpus(self.recipe)

    @functools.cached_property
    def reads(self) -> Tokenizer:
        """How text becomes tokens; the corpus may be gone."""
        return self.recipe.reads

    @property
    def num_tokens(self) -> int:
        return self.reads.num_tokens

    @property
    def validation(self) -> str:
        return VALIDATION

    def side(self, split: str) -> str:
        """The side that a split is drawn from."""
        sides = {side: side for side in (TRAIN, VALIDATION)}
        return self.for_split(split, sides | dict.fromkeys(self.splits, HELD_OUT))

    def source(self, split: str) -> bytes:
        """All text that a split of bytes is drawn from, each document ended by a zero byte.

        Raises:
            FlagError: more than `MOST_BYTES` of it (flag ``corpus``).
        """
        return _bytes(self.opened, self.side(split), self.name)

    def sizes(self) -> Mapping[str, Mapping[str, int]]:
        corpus = self.opened
        return {
            side: {**asdict(one), "tokens": len(corpus.streams[side])}
            for side, one in corpus.sides.items()
        }

    def notes(self) -> list[str]:
        return notes(self.opened)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self.reads.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens; what is no valid UTF-8 becomes U+FFFD."""
        return self.reads.decode(tokens)


def _located(corpus: Any) -> Any:
    """The corpus with every path in full."""
    if isinstance(corpus, str):
        return str(located(corpus))
    if isinstance(corpus, Mapping):
        if "dataset" in corpus:
            return dict(corpus)
        return {k: v if isinstance(v, bool) else _located(v) for k, v in corpus.items()}
    return [_located(one) for one in corpus]


@functools.lru_cache(maxsize=16)
def _bytes(corpus: Corpus, side: str, name: str) -> bytes:
    if corpus.tokenizer.json is not None:
        raise FlagError("corpus", f"task {name!r} reads bytes, and the shards have other tokens")
    stream = corpus.streams[side]
    if len(stream) > MOST_BYTES:
        raise FlagError(
            "corpus",
            f"task {name!r} has all text in memory: side {side!r} has {len(stream):,} bytes, and "
            f"{MOST_BYTES:,} are allowed; choose fewer files",
        )
    return stream.all().tobytes()
