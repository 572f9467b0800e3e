"""Where documents come from: text files, lines of JSON, columns of tables, Hugging Face data sets.

Each document is read in pieces of about `PIECE` bytes, so that no file, however large, has to fit
into memory. What is no text is refused in one line that says which file and which line.
"""

from __future__ import annotations

import codecs
import functools
import gzip
import hashlib
import importlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from xcope.errors import FlagError, did_you_mean, listing

TRAIN, VALIDATION, HELD_OUT = "train", "validation", "held_out"
SIDES = (TRAIN, VALIDATION, HELD_OUT)
PIECE = 2**16
"""Bytes that are read at once."""
LONGEST_ROW = 2**28
"""Bytes of a line of JSON, or of a text in a table."""
LINES = (".jsonl", ".ndjson")
TABLES = (".parquet",)
PACKED = {".gz": "gzip", ".zst": "zstd"}
OF_DATASET = frozenset({"dataset", "config", "revision", "data_files", "rows", "joined", *SIDES})
OF_FILES = frozenset({"joined", *SIDES})


class BadTextError(ValueError):
    """A document that is no text, or cannot be read; the message says where."""


@dataclass(frozen=True)
class Piece:
    """Some of a document.

    Args:
        text: UTF-8.
        key: of the document; its side follows from a hash of it.
        last: the document ends with it.
        side: where the document belongs if the corpus says so.
    """

    text: bytes
    key: bytes
    last: bool
    side: str | None = None


@dataclass(frozen=True)
class Origin:
    """A file to read, or a split of a data set.

    Args:
        name: by which the file is known, relative to the corpus; a document's side follows from it.
    """

    path: Path
    name: str
    side: str | None = None


@dataclass(frozen=True)
class Source:
    """The documents of a corpus, in an order that is the same on any machine.

    Args:
        corpus: a folder, a file or a pattern of files; a list of these; ``{train: …, validation: …,
            held_out: …}`` of these; or a Hugging Face data set, ``{dataset: NAME, config: …,
            revision: …, data_files: …, train: SPLIT, validation: SPLIT, held_out: SPLIT, rows:
            N}``, of which the first N rows of a split. In a mapping, ``joined: true`` makes one
            document of all rows of a file or a split.
        glob: which files of a folder; None: all that are not hidden.
        field: where the text is in a line of JSON or a row of a table.
        left_out: names of folders that are skipped.
    """

    corpus: Any
    glob: str | None = None
    field: str = "text"
    left_out: frozenset[str] = frozenset()

    @property
    def dataset(self) -> bool:
        """Whether it is a Hugging Face data set."""
        return isinstance(self.corpus, Mapping) and "dataset" in self.corpus

    @property
    def joined(self) -> bool:
        """Whether rows are pieces of one document."""
        return isinstance(self.corpus, Mapping) and bool(self.corpus.get("joined"))

    @functools.cached_property
    def files(self) -> list[Origin]:
        """The files, sorted; none for a data set.

        Raises:
            FlagError: a file that is not there (flag ``corpus``), a pattern that matches none
                (``glob``).
        """
        if self.dataset:
            return []
        if not isinstance(self.corpus, Mapping):
            return self._files(self.corpus, None)
        check_keys(self.corpus)
        whole = HELD_OUT not in self.corpus  # a share of it is held out
        found = [
            one
            for side in SIDES
            if side in self.corpus
            for one in self._files(self.corpus[side], None if whole else side)
        ]
        met: dict[Path, str | None] = {}
        for one in found:
            if met.setdefault(one.path.resolve(), one.side) != one.side:
                raise FlagError(
                    "corpus", f"{one.path} is on two sides: {listing(SIDES)} exclude each other"
                )
        return found

    def _files(self, corpus: Any, side: str | None) -> list[Origin]:
        if isinstance(corpus, (list, tuple)):
            found = [one for item in corpus for one in self._files(item, side)]
            return list({one.path.resolve(): one for one in reversed(found)}.values())[::-1]
        root = Path(corpus)
        if root.is_dir():
            return [Origin(root / name, name, side) for name in self._below(root)]
        if root.exists():
            if not root.is_file():
                raise FlagError("corpus", f"{str(root)!r} is no regular file")
            return [Origin(root, root.name, side)]
        parts = root.parts
        stars = [i for i, part in enumerate(parts) if any(c in part for c in "*?[")]
        if stars and (folder := Path(*parts[: stars[0]])).is_dir():
            pattern = "/".join(parts[stars[0] :])
            return [
                Origin(folder / n, n, side)
                for n in _found(folder, pattern, "corpus", self.left_out)
            ]
        near = did_you_mean(root.name, (p.name for p in root.parent.glob("*"))) if root.name else ""
        raise FlagError(
            "corpus",
            f"corpus={str(corpus)!r} cannot be read: it does not exist; name a folder or a "
            f"file{near}",
        )

    def _below(self, root: Path) -> list[str]:
        if self.glob is not None:
            return _found(root, self.glob, "glob", self.left_out)
        found = _found(root, "**/*", "glob", self.left_out, needed=False)
        found = [name for name in found if not any(p.startswith(".") for p in name.split("/"))]
        if not found:
            raise FlagError("corpus", f"corpus={str(root)!r} is a folder without a file")
        return found

    def signature(self) -> list[Any]:
        """What changes when the source does: files with size and time, or the data set's name."""
        if self.dataset:
            return [json.dumps(self.corpus, sort_keys=True), self.field]
        stats = [(one, one.path.stat()) for one in self.files]
        return [
            self.field,
            self.joined,
            *([o.name, o.side, s.st_size, s.st_mtime_ns] for o, s in stats),
        ]

    def size(self) -> int | None:
        """Bytes of its files as they lie on the disk; None for a data set."""
        return None if self.dataset else sum(one.path.stat().st_size for one in self.files)

    def pieces(self) -> Iterator[Piece]:
        """All documents, piece by piece.

        Raises:
            FlagError: a document that is no text, or cannot be read (flag ``corpus``; ``field``
                where the text is not where it should be).
        """
        try:
            if self.dataset:
                yield from self._of_dataset()
                return
            for origin in self.files:
                yield from self._of_file(origin)
        except (BadTextError, OSError) as error:
            raise FlagError("corpus", f"the corpus cannot be read: {error}") from error

    def _of_file(self, origin: Origin) -> Iterator[Piece]:
        stem, packed = origin.path.name, PACKED.get(origin.path.suffix)
        stem = origin.path.stem if packed else stem
        if stem.endswith(TABLES):
            if packed:
                raise BadTextError(f"{origin.path}: a packed table; unpack it")
            yield from self._rows(_table(origin.path, self.field), origin.side, str(origin.path))
        elif stem.endswith(LINES):
            with opened(origin.path) as file:
                yield from self._rows(
                    _lines(file, origin.path, self.field), origin.side, str(origin.path)
                )
        else:
            with opened(origin.path) as file:
                key = os.fsencode(origin.name)
                yield from _text(file, origin.path, key, origin.side)

    def _rows(
        self, rows: Iterator[tuple[str, str]], side: str | None, name: str
    ) -> Iterator[Piece]:
        """A document for each row that holds something, or one of all."""
        key = name.encode()
        for where, text in rows:
            try:
                row = text.encode()
            except UnicodeEncodeError:
                raise BadTextError(f"{where}: the text holds half of a surrogate pair") from None
            check_text(row, where)
            if len(row) > LONGEST_ROW:
                raise BadTextError(
                    f"{where}: a text of {len(row):,} bytes: {LONGEST_ROW:,} at most"
                )
            if self.joined:
                yield Piece(row, key, False, side)
            elif row:
                yield from cut(row, hashlib.sha256(row).digest(), side)
        if self.joined:
            yield Piece(b"", key, True, side)

    def _of_dataset(self) -> Iterator[Piece]:
        for side, name, table in load_dataset(self.corpus):
            if self.field not in (columns := table.column_names or []):
                raise FlagError("field", no_field(self.field, columns, name))
            yield from self._rows(
                _of_table(table, self.field, name, self.corpus.get("rows")), side, name
            )


def check_keys(corpus: Mapping[str, Any]) -> None:
    """Refuse a mapping with keys that mean nothing."""
    allowed = OF_DATASET if "dataset" in corpus else OF_FILES
    for key in corpus:
        if key not in allowed:
            raise FlagError(
                "corpus",
                f"corpus has no key {key!r}: it takes {listing(sorted(allowed))}"
                f"{did_you_mean(key, allowed)}",
            )
    if "dataset" not in corpus and TRAIN not in corpus:
        raise FlagError("corpus", "corpus lacks 'train': name files for it, or a 'dataset'")
    if VALIDATION in corpus and HELD_OUT not in corpus:
        raise FlagError(
            "corpus", "corpus has 'validation' but no 'held_out': name both, or held_out alone"
        )
    rows = corpus.get("rows")
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        raise FlagError(
            "corpus", f"corpus.rows={rows!r} is not allowed: a whole number of at least 1"
        )


def _found(
    root: Path, glob: str, flag: str, left_out: frozenset[str], needed: bool = True
) -> list[str]:
    """Files under ``root`` that match, sorted, as relative paths with forward slashes."""
    try:
        if ".." in Path(glob).parts:
            raise ValueError("'..' leads out of the folder")
        paths = sorted(path for path in root.glob(glob) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise FlagError(flag, f"{flag}={glob!r} is not a pattern of files: {error}") from error
    # one name a file: a link could put the same text on both sides
    once = {path.resolve(): path.relative_to(root) for path in reversed(paths)}
    found = sorted(p.as_posix() for p in once.values() if left_out.isdisjoint(p.parts[:-1]))
    if not found and needed:
        raise FlagError(
            flag, f"no file in {str(root)!r} matches {flag}={glob!r}: write for instance '**/*.txt'"
        )
    return found


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where its name ends in one of `PACKED`."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                yield file  # type: ignore[misc]
        elif path.suffix == ".zst":
            arrow = needed("pyarrow", f"{path} is packed with zstd")
            with arrow.CompressedInputStream(str(path), "zstd") as stream:
                yield io.BufferedReader(_Raw(stream))
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadTextError(f"{path}: is cut off or damaged: {error}") from error


class _Raw(io.RawIOBase):
    """pyarrow's stream, which may give fewer bytes than were asked for, as Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            read: bytes = self._stream.read(len(buffer))
        except OSError as error:
            raise EOFError(str(error)) from error
        buffer[: len(read)] = read
        return len(read)


def check_text(text: bytes, where: str) -> None:
    """Refuse a text with a zero byte, which ends a document."""
    if b"\0" in text:
        raise BadTextError(f"{where}: holds a zero byte: it is no text")


def _text(file: BinaryIO, path: Path, key: bytes, side: str | None) -> Iterator[Piece]:
    """A text file as one document."""
    line, rest, first = 1, b"", True
    while block := file.read(PIECE):
        if first:
            _no_utf16(block, path)
            block, first = block.removeprefix(codecs.BOM_UTF8), False
        block = rest + block
        end = _end(block, path, line)
        yield Piece(block[:end], key, False, side)
        line += block.count(b"\n", 0, end)
        rest = block[end:]
    _decoded(rest, path, line)
    yield Piece(rest, key, True, side)


def _no_utf16(block: bytes, path: Path) -> None:
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadTextError(f"{path}: is UTF-16, not UTF-8: iconv -f UTF-16 -t UTF-8 converts it")


def _end(block: bytes, path: Path | str, line: int) -> int:
    """Where a piece may end: after a line, else after a word, else after a letter."""
    whole = len(block) - _unfinished(block)
    _decoded(block[:whole], path, line)
    for between in (b"\n", b" "):
        at = block.rfind(between, 0, whole) + 1
        # not within a run of white space, which tokenizers take as one
        if at and (at < whole and not block[at : at + 1].isspace()):
            return at
    return whole


def _unfinished(block: bytes) -> int:
    """Bytes at the end that begin a letter which the block does not end."""
    for back in range(1, min(3, len(block)) + 1):
        byte = block[-back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < size else 0
        if byte < 0x80:
            return 0
    return 0


def _decoded(text: bytes, path: Path | str, line: int) -> None:
    if b"\0" in text:
        line += text.count(b"\n", 0, text.index(b"\0"))
        raise BadTextError(f"{path}:{line}: holds a zero byte: it is no text; 'glob' chooses files")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line += text.count(b"\n", 0, error.start)
        raise BadTextError(
            f"{path}:{line}: is not UTF-8 text (byte 0x{text[error.start]:02x}): save it as UTF-8, "
            "or leave it out ('glob' chooses files)"
        ) from None


def cut(text: bytes, key: bytes, side: str | None) -> Iterator[Piece]:
    """A document in memory, in pieces."""
    while len(text) > 2 * PIECE:
        end = _end(text[:PIECE], "", 1)
        yield Piece(text[:end], key, False, side)
        text = text[end:]
    yield Piece(text, key, True, side)


def _lines(file: BinaryIO, path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Place and text of each line of JSON; blank lines are skipped."""
    number = 0
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        if number == 1:
            _no_utf16(line, path)
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > LONGEST_ROW:
            raise BadTextError(f"{path}:{number}: a line of more than {LONGEST_ROW:,} bytes")
        if not line.strip():
            continue
        where = f"{path}:{number}"
        yield where, _field_of(line, where, field)


def _field_of(line: bytes, where: str, field: str) -> str:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadTextError(f"{where}: is not UTF-8 text (byte 0x{line[error.start]:02x})") from None
    except (ValueError, RecursionError) as error:
        words = getattr(error, "msg", None) or str(error)
        raise BadTextError(f"{where}: is not JSON: {words}") from None
    if not isinstance(row, dict):
        raise BadTextError(f'{where}: expected {{"{field}": …}}, got {type(row).__name__}')
    if field not in row:
        raise FlagError("field", no_field(field, row, where))
    if not isinstance(row[field], str):
        raise FlagError("field", f"{where}: {field!r} holds {_kind(row[field])}, not text")
    text: str = row[field]
    return text


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def no_field(field: str, fields: Sequence[str] | Mapping[str, Any], where: str) -> str:
    """What to say where the text is not."""
    return f"{where}: has no field {field!r}, but {listing(fields)}{did_you_mean(field, fields)}"


def _table(path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Place and text of each row of a parquet file."""
    needed("pyarrow", f"{path} is a parquet file")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    arrow: Any = importlib.import_module("pyarrow")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if field not in names:
            raise FlagError("field", no_field(field, names, str(path)))
        kind = file.schema_arrow.field(field).type
        if not _is_text(arrow, kind):
            raise FlagError("field", f"{path}: column {field!r} holds {kind}, not text")
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=[field]):
            for text in batch.column(0).to_pylist():
                number += 1
                if text is None:
                    raise FlagError("field", f"{path}: row {number}: {field!r} is null")
                yield f"{path}: row {number}", text
    except arrow.ArrowException as error:
        raise BadTextError(f"{path}: is damaged, or no parquet file: {error}") from None


def _is_text(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def needed(module: str, why: str) -> Any:
    """A module of the extra ``[hf]``.

    Raises:
        FlagError: it is not installed (flag ``corpus``).
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FlagError(
            "corpus", f'{why}, which needs {module}: pip install "xcope[hf]" ({error})'
        ) from error


def load_dataset(corpus: Mapping[str, Any]) -> Iterator[tuple[str | None, str, Any]]:
    """Side, name and table of each split that the corpus names; by itself ``train``.

    Raises:
        FlagError: it cannot be loaded.
    """
    check_keys(corpus)
    name = corpus["dataset"]
    datasets = needed("datasets", f"{name!r} is a Hugging Face data set")
    sides = {side: corpus[side] for side in SIDES if side in corpus}
    if HELD_OUT in sides:
        sides = {TRAIN: TRAIN, **sides}
    for side, split in (sides if HELD_OUT in sides else {None: sides.get(TRAIN, TRAIN)}).items():
        label = f"data set {name!r}, split {split!r}"
        try:
            table = datasets.load_dataset(
                name,
                corpus.get("config"),
                revision=corpus.get("revision"),
                data_files=corpus.get("data_files"),
                split=split,
            )
        except Exception as error:  # of a dozen libraries beneath
            words = " ".join(str(error).split()) or type(error).__name__
            raise FlagError("corpus", f"{label} cannot be loaded: {words:.300}") from error
        yield side, label, table


def _of_table(table: Any, field: str, name: str, most: int | None) -> Iterator[tuple[str, str]]:
    if most is not None and most < len(table):
        table = table.select(range(most))
    number = 0
    for batch in table.select_columns([field]).iter(batch_size=64):
        for text in batch[field]:
            number += 1
            if not isinstance(text, str):
                raise FlagError(
                    "field", f"{name}: row {number}: {field!r} holds {_kind(text)}, not text"
                )
            yield f"{name}: row {number}", text
