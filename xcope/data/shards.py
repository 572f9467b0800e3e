"""Shards: tokens of a corpus on disk, made once, read through memory maps.

A folder::

    index.json                    sides, tokenizer, files with their SHA-256
    tokenizer.json                the tokenizer, unless the tokens are bytes
    train-00000.tokens.bin        tokens as uint8, uint16 or uint32, little-endian
    train-00000.bytes.bin         the bytes of text that each stands for, uint16; not for bytes
    train-00000.documents.bin     where each document ends, in tokens of this shard, uint64
    validation-00000.tokens.bin   …

Making them can be stopped at any moment, also by SIGKILL: what is finished is kept, and the same
call goes on to the same files, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from xcope import files
from xcope.data.documents import SIDES, TRAIN, Piece, Source
from xcope.data.sides import Side, Split, Survey
from xcope.data.tokenizer import WIDEST, Tokenizer, load_tokenizer
from xcope.errors import FlagError

INDEX, PLAN, VERIFIED, LOCK = "index.json", "plan.json", ".verified.json", ".lock"
FORMAT = 1
PART = 2**25
"""Bytes of text whose tokens are written at once; a shard of each side."""
BATCH = 2**18
"""Bytes of text that are tokenized at once: a token takes hundreds of bytes in the meantime."""
COUNTS, ENDS = np.dtype("<u2"), np.dtype("<u8")

Array = NDArray[Any]
Progress = Callable[[str, int, int | None], None]
"""Is told what is done, how many bytes of it, and of how many if that is known."""


class Stream:
    """All tokens of a side, one document after the other, each with the separator at its end.

    Args:
        shards: file of tokens and their number, or the tokens themselves.
        counts: the bytes that each token stands for, shaped alike; None: one each.
        dtype: of the tokens in files.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Path, int] | Array],
        counts: Sequence[tuple[Path, int] | Array] | None,
        dtype: np.dtype[Any],
    ) -> None:
        self._shards, self._counts, self._dtype = shards, counts, dtype
        sizes = [len(s) if isinstance(s, np.ndarray) else s[1] for s in shards]
        self._begins = [0, *itertools.accumulate(sizes)]

    def __len__(self) -> int:
        return self._begins[-1]

    def all(self) -> Array:
        """All tokens in memory."""
        parts = [_part(s, self._dtype, 0, n) for s, n in self._sized()]
        return _joined(parts, self._dtype)

    def _sized(self) -> Iterator[tuple[tuple[Path, int] | Array, int]]:
        sizes = (end - begin for begin, end in itertools.pairwise(self._begins))
        return zip(self._shards, sizes, strict=True)

    def windows(self, starts: Iterable[int], length: int) -> tuple[Array, Array | None]:
        """Tokens from each of b starts on, and the bytes that each stands for: (b length) int64."""
        starts = list(starts)
        counted = self._counts is not None
        tokens = np.empty((len(starts), length), dtype=np.int64)
        counts = np.empty_like(tokens) if counted else None
        for row, start in enumerate(starts):
            self._fill(tokens[row], self._shards, self._dtype, start)
            if self._counts is not None and counts is not None:
                self._fill(counts[row], self._counts, COUNTS, start)
        return tokens, counts

    def _fill(self, row: Array, shards: Sequence[Any], dtype: np.dtype[Any], start: int) -> None:
        done = 0
        while done < len(row):
            shard = bisect_right(self._begins, start) - 1
            size = min(len(row) - done, self._begins[shard + 1] - start)
            row[done : done + size] = _part(shards[shard], dtype, start - self._begins[shard], size)
            done, start = done + size, start + size


def _part(shard: tuple[Path, int] | Array, dtype: np.dtype[Any], start: int, size: int) -> Array:
    if isinstance(shard, np.ndarray):
        return shard[start : start + size]
    # only the window is mapped, and let go at once: what was read does not stay in memory
    return np.memmap(shard[0], dtype, "r", offset=start * dtype.itemsize, shape=(size,))


@dataclass(frozen=True, eq=False)
class Shards:
    """An opened folder of shards, or what would be in one.

    Args:
        tokenizer: that they were made with.
        streams: side → its tokens.
        sides: side → what is on it.
        about: what else ``index.json`` says.
    """

    tokenizer: Tokenizer
    streams: Mapping[str, Stream]
    sides: Mapping[str, Side]
    about: Mapping[str, Any]


class Writing:
    """Pieces of sides → tokens, batch by batch; bytes that gave no token go to the next one."""

    def __init__(self, tokenizer: Tokenizer, pending: Mapping[str, int] | None = None) -> None:
        self.tokenizer = tokenizer
        self.pending = dict.fromkeys(SIDES, 0) | dict(pending or {})
        self._separator = np.array([tokenizer.separator], dtype=tokenizer.dtype)

    def tokens(
        self, sided: Iterable[tuple[str, Piece]]
    ) -> Iterator[tuple[str, Piece, Array, Array | None]]:
        """Side, piece, tokens with the separator where the document ends, and their bytes."""
        batch: list[tuple[str, Piece]] = []
        size = 0
        for one in sided:
            batch.append(one)
            size += len(one[1].text)
            if size >= BATCH or len(batch) >= 1024:
                yield from self._encoded(batch)
                batch, size = [], 0
        yield from self._encoded(batch)

    def _encoded(self, batch: list[tuple[str, Piece]]) -> Iterator[Any]:
        found = self.tokenizer.encode_all([piece.text for _, piece in batch])
        for (side, piece), (ids, counted) in zip(batch, found, strict=True):
            tokens = np.concatenate((ids, self._separator)) if piece.last else ids
            if counted is None:
                yield side, piece, tokens, None
                continue
            if not len(counted):
                self.pending[side] += len(piece.text)
            counts = np.append(counted, np.uint16(1)) if piece.last else counted
            if self.pending[side] and len(counts):
                first = int(counts[0]) + self.pending[side]
                if first > WIDEST:
                    raise FlagError(
                        "tokenizer",
                        f"gives no token for {first:,} bytes: it does not know this text",
                    )
                counts[0], self.pending[side] = first, 0
            yield side, piece, tokens, counts


def in_memory(source: Source, tokenizer: Tokenizer, held_out: float, validation: float) -> Shards:
    """The tokens of a small corpus, without files.

    Raises:
        FlagError: see `Source`, `Survey` and `Tokenizer`.
    """
    pieces = list(source.pieces())
    split = Split(Survey.of(pieces, held_out), held_out, validation)
    parts: dict[str, list[Array]] = {side: [] for side in SIDES}
    counted: dict[str, list[Array]] = {side: [] for side in SIDES}
    tally = Tally()
    for side, piece, tokens, counts in Writing(tokenizer).tokens(split.sided(pieces)):
        tally.add(side, piece)
        parts[side].append(tokens)
        if counts is not None:
            counted[side].append(counts)
    streams = {}
    for side in SIDES:
        bytes_of = None if tokenizer.json is None else [_joined(counted[side], COUNTS)]
        whole = _joined(parts[side], tokenizer.dtype)
        streams[side] = Stream([whole], bytes_of, tokenizer.dtype)
    about = {
        "held_out": held_out,
        "empty": split.survey.empty,
        "changes": changes(tokenizer, ((TRAIN, piece) for piece in pieces)),
    }
    return Shards(tokenizer, streams, tally.sides(), about)


def _joined(parts: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


class Tally:
    """Counts documents and bytes of each side; a document that is cut counts on both.

    Args:
        open: side → the key of the document that is not ended yet.
    """

    def __init__(self, open: Mapping[str, str] | None = None) -> None:
        self.open: dict[str, str] = dict(open or {})
        self._sums = {side: [0, 0] for side in SIDES}

    def add(self, side: str, piece: Piece) -> None:
        """Count a piece."""
        key = piece.key.hex()
        if piece.text and self.open.get(side) != key:
            self._sums[side][0] += 1
            self.open[side] = key
        if piece.last:
            self.open.pop(side, None)
        self._sums[side][1] += len(piece.text)

    def sides(self) -> dict[str, Side]:
        """Side → what was counted."""
        return {side: Side(*sums) for side, sums in self._sums.items()}


def is_shards(path: str | Path) -> bool:
    """Whether a folder holds shards, finished or not."""
    return any((Path(path) / name).is_file() for name in (INDEX, PLAN))


def make_shards(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    held_out: float,
    validation: float,
    part: int = PART,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Shards:
    """Make the shards in ``out``, or go on with them, or open them where they are finished.

    One process at a time writes to a folder; others wait for it.

    Args:
        held_out: share of bytes that is held out.
        validation: share of these that is for validation.
        part: bytes of text of a shard.
        overwrite: begin again where there are shards of something else.

    Raises:
        FlagError: the folder holds something else (flag ``out``), or see `Source`, `Survey` and
            `Tokenizer`.
    """
    plan = {
        "format": FORMAT,
        "source": source.signature(),
        "tokenizer": tokenizer.digest,
        "held_out": held_out,
        "validation": validation,
        "part": part,
    }
    plan = json.loads(json.dumps(plan))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        _begin(out, plan, overwrite)
        if not (out / INDEX).is_file():
            _write_all(source, tokenizer, out, plan, progress or (lambda *_: None))
    return open_shards(out)


def _begin(out: Path, plan: Mapping[str, Any], overwrite: bool) -> None:
    then = _read_json(out / PLAN) if (out / PLAN).is_file() else None
    if then == plan:
        return
    others = [path for path in out.iterdir() if path.name != LOCK]
    if then is None and others and not (out / INDEX).is_file():
        raise FlagError("out", f"{out} is not empty and holds no shards: choose another folder")
    if others and not overwrite:
        then = then if isinstance(then, dict) else {}
        changed = [key for key in plan if then.get(key) != plan[key]]
        raise FlagError(
            "out",
            f"{out} holds shards that were made otherwise ({', '.join(changed)} changed): "
            "--overwrite makes them again, --out chooses another folder",
        )
    for path in others:
        path.unlink()
    files.write_json(out / PLAN, plan)


def _write_all(
    source: Source, tokenizer: Tokenizer, out: Path, plan: Mapping[str, Any], progress: Progress
) -> None:
    held_out, total = plan["held_out"], source.size()
    survey = Survey.of(told(source.pieces(), progress, "reading", total), held_out)
    records: list[dict[str, Any]] = []
    while (out / _record(len(records))).is_file():
        records.append(_read_json(out / _record(len(records))))
    done = sum(record["pieces"] for record in records)
    at = sum(record["text"] for record in records)
    sided = Split(survey, held_out, plan["validation"]).sided(source.pieces())
    pieces = itertools.islice(sided, done, None)
    while chunk := _chunk(pieces, plan["part"]):
        before = records[-1] if records else {"pending": {}, "open": {}}
        writing, tally = Writing(tokenizer, before["pending"]), Tally(before["open"])
        parts = _Parts(out, len(records), tokenizer)
        for side, piece, tokens, counts in writing.tokens(chunk):
            tally.add(side, piece)
            parts.add(side, piece, tokens, counts)
            at += len(piece.text)
            progress("tokenizing", at, survey.bytes)
        records.append(
            {
                "shards": parts.written(),
                "sides": {side: asdict(one) for side, one in tally.sides().items()},
                "pieces": len(chunk),
                "text": sum(len(piece.text) for _, piece in chunk),
                "pending": writing.pending,
                "open": tally.open,
                "changes": records[0]["changes"] if records else changes(tokenizer, chunk),
            }
        )
        files.write_json(out / _record(len(records) - 1), records[-1])
    for name, content in tokenizer.kept().items():
        files.write_text(out / name, content)
    index = _index(tokenizer, plan, survey, records)
    files.write_json(out / INDEX, index)
    _write_verified(out, index)
    for number in range(len(records)):
        (out / _record(number)).unlink()


def _record(number: int) -> str:
    return f"part-{number:05d}.json"


def told(
    pieces: Iterable[Piece], progress: Progress, what: str, total: int | None
) -> Iterator[Piece]:
    """The pieces, while ``progress`` hears of them."""
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece.text)
        progress(what, done, total)


def _chunk(pieces: Iterator[tuple[str, Piece]], size: int) -> list[tuple[str, Piece]]:
    """The next pieces, of about ``size`` bytes."""
    chunk, held = [], 0
    for one in pieces:
        chunk.append(one)
        # a table of empty rows must end, too
        held += len(one[1].text) + 1
        if held >= size:
            break
    return chunk


def changes(tokenizer: Tokenizer, sided: Iterable[tuple[str, Piece]]) -> list[str] | None:
    """A text that the tokenizer does not give back, and what it gives; of some that are tried."""
    texts = (piece.text[:2000].decode(errors="ignore").encode() for _, piece in sided)
    found = tokenizer.changes(itertools.islice(texts, 50))
    return None if found is None else list(found)


class _Parts:
    """The shards of one part, gathered in memory and written at once."""

    def __init__(self, out: Path, number: int, tokenizer: Tokenizer) -> None:
        self._out, self._number, self._tokenizer = out, number, tokenizer
        self._tokens: dict[str, list[Array]] = {side: [] for side in SIDES}
        self._counts: dict[str, list[Array]] = {side: [] for side in SIDES}
        self._ends: dict[str, list[int]] = {side: [] for side in SIDES}
        self._at = dict.fromkeys(SIDES, 0)

    def add(self, side: str, piece: Piece, tokens: Array, counts: Array | None) -> None:
        """Add the tokens of a piece."""
        self._tokens[side].append(tokens)
        self._at[side] += len(tokens)
        if counts is not None:
            self._counts[side].append(counts)
        if piece.last:
            self._ends[side].append(self._at[side])

    def written(self) -> dict[str, dict[str, Any]]:
        """Write the files; returns side → the number of tokens, and file → size and SHA-256."""
        found = {}
        for side in SIDES:
            if not self._at[side]:
                continue
            name = f"{side}-{self._number:05d}"
            little = self._tokenizer.dtype.newbyteorder("<")
            arrays = {"tokens": _joined(self._tokens[side], little).astype(little, copy=False)}
            if self._tokenizer.json is not None:
                arrays["bytes"] = _joined(self._counts[side], COUNTS).astype(COUNTS, copy=False)
            arrays["documents"] = np.array(self._ends[side], dtype=ENDS)
            found[side] = {
                "tokens": self._at[side],
                "files": {
                    f"{name}.{kind}.bin": _write(self._out / f"{name}.{kind}.bin", array)
                    for kind, array in arrays.items()
                },
            }
        return found


def _write(path: Path, array: Array) -> list[Any]:
    """Write a file whole or not at all; returns its size and SHA-256."""
    beside = path.with_name(f".{path.name}.new")
    data = np.ascontiguousarray(array).view(np.uint8).data
    try:
        beside.write_bytes(data)
        files.fsync(beside)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise FlagError("out", f"{path} cannot be written: {error}") from error
    return [data.nbytes, hashlib.sha256(data).hexdigest()]


def _index(
    tokenizer: Tokenizer,
    plan: Mapping[str, Any],
    survey: Survey,
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    sides = {}
    for side in SIDES:
        shards = [record["shards"][side] for record in records if side in record["shards"]]
        sums = [record["sides"][side] for record in records]
        sides[side] = {
            "documents": sum(one["documents"] for one in sums),
            "bytes": sum(one["bytes"] for one in sums),
            "tokens": sum(shard["tokens"] for shard in shards),
            "shards": shards,
        }
    return {
        "format": FORMAT,
        "tokenizer": {
            "sha256": tokenizer.digest,
            "num_tokens": tokenizer.num_tokens,
            "separator": tokenizer.separator,
            "bytes": tokenizer.json is None,
        },
        "dtype": tokenizer.dtype.name,
        "held_out": plan["held_out"],
        "empty": survey.empty,
        "changes": records[0]["changes"] if records else None,
        "sides": sides,
    }


def open_shards(folder: Path) -> Shards:
    """The shards of a folder.

    Raises:
        FlagError: they are not finished, or a file is missing, cut off or changed (flag
            ``corpus``).
    """
    index = _index_of(folder)
    try:
        _verify(folder, index)
        tokenizer = tokenizer_of(folder)
        streams, sides = {}, {}
        for side in SIDES:
            one = index["sides"][side]
            streams[side] = _stream(folder, one["shards"], tokenizer)
            sides[side] = Side(one["documents"], one["bytes"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FlagError("corpus", f"{folder / INDEX} is damaged: {error!r}") from error
    return Shards(tokenizer, streams, sides, index)


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that a folder of shards was made with.

    Raises:
        FlagError: the shards are not finished, or their tokenizer is not there (flag ``corpus``).
    """
    about = _index_of(folder)["tokenizer"]
    tokenizer = load_tokenizer(None if about["bytes"] else str(folder))
    if tokenizer.digest != about["sha256"]:
        raise FlagError(
            "corpus", f"{folder}: its tokenizer.json is not the one that made the shards"
        )
    return tokenizer


def _index_of(folder: Path) -> Any:
    if not (folder / INDEX).is_file():
        raise FlagError(
            "corpus",
            f"the shards in {folder} are not finished: the call of 'xcope data tokenize' that "
            "began them goes on with them",
        )
    index = _read_json(folder / INDEX)
    try:
        if index["format"] != FORMAT:
            raise FlagError("corpus", f"{folder / INDEX}: format {index['format']} is not {FORMAT}")
        _ = index["tokenizer"]["sha256"], index["tokenizer"]["bytes"]
    except (KeyError, TypeError) as error:
        raise FlagError("corpus", f"{folder / INDEX} is damaged: {error!r}") from error
    return index


def _stream(folder: Path, shards: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Stream:
    def of(kind: str) -> list[tuple[Path, int]]:
        return [
            (folder / name, shard["tokens"])
            for shard in shards
            for name in shard["files"]
            if name.endswith(f".{kind}.bin")
        ]

    counts = None if tokenizer.json is None else of("bytes")
    return Stream(of("tokens"), counts, tokenizer.dtype.newbyteorder("<"))


def _files_of(index: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """File → size and SHA-256."""
    return {
        name: (size, digest)
        for side in index["sides"].values()
        for shard in side["shards"]
        for name, (size, digest) in shard["files"].items()
    }


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _write_verified(folder: Path, index: Mapping[str, Any]) -> None:
    stamps = {name: _stamp(folder / name) for name in _files_of(index)}
    # a folder that may only be read is looked through each time
    with contextlib.suppress(OSError):
        files.write_json(folder / VERIFIED, stamps)


def _verify(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse files that are not those of the index. Sizes are looked at each time; contents where
    a file's time is not that of the last look."""
    try:
        verified = _read_json(folder / VERIFIED)
    except FlagError:
        verified = {}
    looked = False
    for name, (size, digest) in _files_of(index).items():
        path = folder / name
        if not path.is_file():
            raise FlagError("corpus", f"the shard {path} is missing; xcope data tokenize makes it")
        has, _ = stamp = _stamp(path)
        if has != size:
            raise FlagError(
                "corpus",
                f"the shard {path} is {'cut off' if has < size else 'too long'}: it has {has:,} "
                f"bytes, and index.json says {size:,}; make it again, or copy it again",
            )
        if verified.get(name) == stamp:
            continue
        looked = True
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise FlagError(
                    "corpus",
                    f"the shard {path} was changed: its SHA-256 is not the one in index.json; make "
                    "it again, or copy it again",
                )
    if looked:
        _write_verified(folder, index)


def _read_json(path: Path) -> Any:
    try:
        return files.parse_json(files.read_text(path))
    except FileNotFoundError as error:
        raise FlagError("corpus", f"{path} is missing") from error
    except files.UnreadableError as error:
        raise FlagError("corpus", f"{path} {error}") from error
