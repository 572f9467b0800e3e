"""Which documents are held out, by share of bytes, and the text of each side.

A document goes by a hash: of its path where it is a file, of its text where it is a row, so that
copies of a row are on one side. Those whose hash lies below the share are held out, as long as that
is between half of the share and twice as much of all bytes: a document then keeps its side whatever
else is added. Where it is not (few documents, or very unequal ones), they are taken in the order of
their hashes, leaving out what would exceed the share by half, until the share is reached; at least
the smallest is held out. A corpus of a single document is cut, its end held out.

The first part of the held-out text is for validation, on which values are picked: no test sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from xcope.data.documents import HELD_OUT, TRAIN, VALIDATION, Piece
from xcope.errors import FlagError

BUCKETS = 2**16
"""Documents whose hashes are this near share a side where they are taken in order."""
LEAST, MOST, BEYOND = 0.5, 2.0, 1.5


@dataclass(frozen=True)
class Side:
    """What is on a side: documents, and bytes of their text. A document that is cut counts on each
    side that has some of it."""

    documents: int = 0
    bytes: int = 0

    def plus(self, size: int) -> Side:
        """With one more document of ``size`` bytes."""
        return Side(self.documents + 1, self.bytes + size)

    @property
    def separated(self) -> int:
        """Bytes with one more for each document, which ends it."""
        return self.bytes + self.documents


@dataclass
class Survey:
    """What a first look at all documents found.

    Args:
        documents: how many there are.
        empty: how many of them hold nothing.
        bytes: of their text.
        below: documents and bytes of those whose hash lies below the share.
        buckets: hash, as a whole number below `BUCKETS` → documents and bytes.
        given: side → documents and bytes of those that have one.
    """

    documents: int = 0
    empty: int = 0
    bytes: int = 0
    below: Side = Side()
    buckets: dict[int, Side] = field(default_factory=dict)
    given: dict[str, Side] = field(default_factory=dict)

    @classmethod
    def of(cls, pieces: Iterable[Piece], held_out: float) -> Survey:
        """Read everything once.

        Raises:
            FlagError: there is no text (flag ``corpus``).
        """
        survey, size = cls(), 0
        for piece in pieces:
            size += len(piece.text)
            if not piece.last:
                continue
            survey.documents += 1
            survey.empty += not size
            survey.bytes += size
            if piece.side is not None:
                survey.given[piece.side] = survey.given.get(piece.side, Side()).plus(size)
            else:
                share = share_of(piece.key)
                if share < held_out:
                    survey.below = survey.below.plus(size)
                bucket = int(share * BUCKETS)
                survey.buckets[bucket] = survey.buckets.get(bucket, Side()).plus(size)
            size = 0
        if not survey.bytes:
            raise FlagError("corpus", f"the corpus holds no text, in {survey.documents} documents")
        return survey


def share_of(key: bytes) -> float:
    """A document's hash, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") / 2**64


@dataclass
class Split:
    """Turns the pieces of documents into pieces of sides.

    Args:
        survey: of the same documents.
        held_out: share of bytes.
        validation: share of the held-out bytes.
    """

    survey: Survey
    held_out: float
    validation: float

    def __post_init__(self) -> None:
        survey = self.survey
        self._chosen: Callable[[bytes], bool] = lambda key: False
        self._cut: int | None = None
        if survey.given:
            held = survey.given.get(HELD_OUT, Side()).separated
            self._first = 0 if VALIDATION in survey.given else _floor(held * self.validation)
        elif survey.documents == 1:
            self._cut = round(survey.bytes * (1 - self.held_out))
            self._first = self._cut + _floor((survey.bytes - self._cut) * self.validation)
        else:
            self._chosen, held = choose(survey, self.held_out)
            self._first = _floor(held * self.validation)

    def sided(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, Piece]]:
        """Side and piece, in the order of the documents."""
        at = 0
        for piece in pieces:
            if piece.side in (TRAIN, VALIDATION):
                yield piece.side, piece
            elif self._cut is not None:
                ends = ((TRAIN, self._cut), (VALIDATION, self._first))
                yield from _cut(piece, at, ends, separated=False)
                at += len(piece.text)
            elif piece.side == HELD_OUT or self._chosen(piece.key):
                yield from _cut(piece, at, ((VALIDATION, self._first),), separated=True)
                at += len(piece.text) + piece.last
            else:
                yield TRAIN, piece


def _floor(number: float) -> int:
    return int(number + 1e-6)


def _cut(
    piece: Piece, at: int, ends: tuple[tuple[str, int], ...], *, separated: bool
) -> Iterator[tuple[str, Piece]]:
    """The parts of a piece that begins with byte ``at``: each side's up to its end, then held out.

    Args:
        separated: a separator may follow the document; where one document is cut, there is none.
    """
    text, last = piece.text, piece.last and separated
    for side, end in ends:
        if at + len(text) + last <= end:
            yield side, replace(piece, text=text, last=last)
            return
        if at < end:
            # no letter is cut in two
            place = min(end - at, len(text))
            while 0 < place < len(text) and 0x80 <= text[place] < 0xC0:
                place -= 1
            if place:
                yield side, replace(piece, text=text[:place], last=False)
            at, text = at + place, text[place:]
    if text or last:
        yield HELD_OUT, replace(piece, text=text, last=last)


def choose(survey: Survey, held_out: float) -> tuple[Callable[[bytes], bool], int]:
    """Whether the document of a key is held out, and the bytes of those that are, separated.

    Raises:
        FlagError: there is nothing to choose from (flag ``held_out``).
    """
    below = survey.below
    some = 0 < below.bytes < survey.bytes
    if some and LEAST * held_out <= below.bytes / survey.bytes <= MOST * held_out:
        return (lambda key: share_of(key) < held_out), below.separated
    full = {bucket: side for bucket, side in sorted(survey.buckets.items()) if side.bytes}
    if len(full) < 2:
        raise FlagError(
            "held_out",
            "the corpus has only one document with text, or copies of one, so that no other can be "
            "held out: add documents, or name the one file",
        )
    wanted, held, taken = held_out * survey.bytes, 0, []
    for bucket, side in full.items():
        if held < wanted and held + side.bytes <= BEYOND * wanted:
            taken.append(bucket)
            held += side.bytes
    if not held:
        taken = [min(full, key=lambda bucket: (full[bucket].bytes, bucket))]
    if len(taken) == len(full):
        taken.pop()
    chosen = frozenset(taken)
    return (
        lambda key: int(share_of(key) * BUCKETS) in chosen,
        sum(full[bucket].separated for bucket in chosen),
    )
