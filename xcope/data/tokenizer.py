"""Tokenizers: text to tokens and back, and how many bytes of the text each token stands for.

Bytes per token are counted where the text is cut into tokens, from where each token begins and
ends in it, not from how a token looks by itself: a token may be half of a letter, stand for white
space that it does not show, or for a letter that a normaliser changed. The counts of a document sum
to its bytes with every tokenizer, so that bits per byte compare.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcope.errors import FlagError

BYTES = "bytes"
"""The tokenizer whose tokens are the bytes of UTF-8."""
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
MOST_TOKENS = 2**20
"""Of a vocabulary."""
WIDEST = 2**16 - 1
"""Bytes that one token may stand for."""
ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "[SEP]",
    "<|im_end|>",
)
"""Special tokens that end a document, where a tokenizer does not say which does."""
END = ENDS[0]

Counts = NDArray[np.uint16]


class Tokenizer:
    """Bytes, or a tokenizer of the library ``tokenizers``.

    Args:
        json: a ``tokenizer.json``; None: the tokens are the bytes of the text.
        end: the token that ends each document. None, or where it does not know that one: of those
            that it has, one of `ENDS`; if it has none, one more token than it knows.

    Attributes:
        num_tokens: size of the vocabulary, with the token that ends a document.
        separator: that token.
    """

    def __init__(self, json: str | None = None, end: str | None = None) -> None:
        self.json = json
        self.separator, self.num_tokens = 0, 256
        self._fast: Any = None
        if json is not None:
            self._load(json, end)

    def _load(self, json: str, end: str | None) -> None:
        library = _library()
        try:
            self._fast = library.Tokenizer.from_str(json)
        except Exception as error:  # the library raises bare Exceptions
            raise FlagError("tokenizer", f"is no tokenizer.json: {error!s:.200}") from error
        # what looks like a special token in a text is text, and nothing is added or cut
        self._fast.encode_special_tokens = True
        self._fast.no_padding()
        self._fast.no_truncation()
        vocabulary: dict[str, int] = self._fast.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise FlagError("tokenizer", "has no tokens: train it first")
        largest = max(vocabulary.values())
        found = next((vocabulary[name] for name in (end, *ENDS) if name in vocabulary), None)
        self.separator = largest + 1 if found is None else found
        self.num_tokens = max(largest, self.separator) + 1
        if self.num_tokens > MOST_TOKENS:
            raise FlagError(
                "tokenizer", f"has {self.num_tokens:,} tokens: at most {MOST_TOKENS:,} are read"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of what it does; the same for bytes everywhere."""
        content = json.dumps([self.json and json.loads(self.json), self.separator], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest whole numbers that hold every token."""
        return np.min_scalar_type(self.num_tokens - 1)

    @property
    def end(self) -> str | None:
        """The name of the token that ends a document; None where the tokenizer has none."""
        return None if self._fast is None else self._fast.id_to_token(self.separator)

    def kept(self) -> dict[str, str]:
        """File name → content: what a folder has to hold to give this tokenizer again."""
        if self.json is None:
            return {}
        named = {} if self.end is None else {CONFIG: json.dumps({"eos_token": self.end}) + "\n"}
        return {FILE: self.json, **named}

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; half of a surrogate pair, which UTF-8 lacks, becomes ``?``."""
        data = text.encode("utf-8", errors="replace")
        if self._fast is None:
            return list(data)
        ids: list[int] = self.encode_all([data])[0][0].tolist()
        return ids

    def encode_all(self, texts: Sequence[bytes]) -> list[tuple[NDArray[Any], Counts | None]]:
        """Tokens of each text, and the bytes that each stands for; None where that is one each.

        Raises:
            FlagError: a token that stands for more than `WIDEST` bytes.
        """
        if self._fast is None:
            return [(np.frombuffer(text, dtype=np.uint8), None) for text in texts]
        encodings = self._fast.encode_batch(
            [text.decode() for text in texts], add_special_tokens=False
        )
        found = [(one.ids, one.offsets) for one in encodings]
        found = [
            self._in_parts(text) if self.separator in ids else (ids, offsets)
            for text, (ids, offsets) in zip(texts, found, strict=True)
        ]
        return [
            (np.array(ids, dtype=self.dtype), self._counted(text, offsets))
            for text, (ids, offsets) in zip(texts, found, strict=True)
        ]

    def _in_parts(self, text: bytes) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens and their places in a text that says the end of a document, which some models
        have among their ordinary tokens: cut within it, so that it is text."""
        end = self.end or ""
        first, rest = end[:1], end[1:]
        parts = text.decode().split(end)
        parts = [rest + part if i else part for i, part in enumerate(parts)]
        parts = [part + first for part in parts[:-1]] + parts[-1:]
        ids, offsets, at = [], [], 0
        for part in parts:
            one = self._fast.encode(part, add_special_tokens=False)
            ids += one.ids
            offsets += [(begin + at, stop + at) for begin, stop in one.offsets]
            at += len(part)
        return ids, offsets

    def _counted(self, text: bytes, offsets: Sequence[tuple[int, int]]) -> Counts:
        """Bytes from each token's end back to the end of the one before it; the last has the rest.

        Of the tokens that share a letter the first has its bytes.
        """
        if not offsets:
            return np.empty(0, dtype=np.uint16)
        data = np.frombuffer(text, dtype=np.uint8)
        starts = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))  # of letters
        ends = np.maximum.accumulate(starts[np.array(offsets)[:, 1]])
        ends[-1] = len(data)
        counts = np.diff(ends, prepend=0)
        if counts.max() > WIDEST:
            widest = int(counts.argmax())
            begin = int(ends[widest] - counts[widest])
            raise FlagError(
                "tokenizer",
                f"one token stands for {counts.max():,} bytes, {text[begin : begin + 40]!r} …: the "
                "tokenizer does not know this text",
            )
        return counts.astype(np.uint16)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; what is no valid UTF-8 becomes U+FFFD, the end of a document a zero byte
        if the tokenizer has no name for it."""
        if self._fast is None:
            return bytes(tokens).decode("utf-8", errors="replace")
        parts: list[list[int]] = [[]]
        for token in tokens:
            if self.end is None and token == self.separator:
                parts.append([])
            else:
                parts[-1].append(token)
        return "\0".join(self._fast.decode(part, skip_special_tokens=False) for part in parts)

    def changes(self, texts: Iterable[bytes]) -> tuple[str, str] | None:
        """The first text that is another one when it comes back, and what comes back; None where
        the tokenizer keeps all of them."""
        for text in texts:
            sent = text.decode()
            back = self.decode(self.encode(sent))
            if back != sent and back.removeprefix(" ") != sent:
                at = next(
                    (i for i, (a, b) in enumerate(zip(sent, back, strict=False)) if a != b), 0
                )
                return sent[max(0, at - 10) : at + 20], back[max(0, at - 10) : at + 20]
        return None


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise FlagError(
            "tokenizer",
            "every tokenizer but 'bytes' needs the library tokenizers: "
            f'pip install "xcope[hf]" ({error})',
        ) from error


@functools.lru_cache(maxsize=8)
def _cached(text: str, end: str | None) -> Tokenizer:
    return Tokenizer(text, end)


def load_tokenizer(name: str | None) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name: ``bytes``; a ``tokenizer.json``; a folder with one; or a model of the Hugging Face
            hub, which is looked for in the cache first. None: bytes.

    Raises:
        FlagError: there is none, or it cannot be read (flag ``tokenizer``).
    """
    if name is None or name == BYTES:
        return Tokenizer()
    path = Path(name)
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file():
            return _cached(_read(path), _end_beside(path.parent / CONFIG))
        if path.is_absolute() or name.endswith(".json"):
            raise FlagError("tokenizer", f"there is no file {name!r}")
        return _of_hub(name)
    except FlagError as error:
        raise FlagError("tokenizer", f"tokenizer={name!r}: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlagError("tokenizer", f"cannot be read: {error}") from error


def _of_folder(folder: Path) -> Tokenizer:
    if (folder / FILE).is_file():
        return _cached(_read(folder / FILE), _end_beside(folder / CONFIG))
    return _of_transformers(str(folder))


def _end_beside(config: Path) -> str | None:
    """The end of a document that a ``tokenizer_config.json`` names."""
    try:
        named = json.loads(_read(config)).get("eos_token")
    except (FlagError, ValueError, AttributeError):
        return None
    if isinstance(named, Mapping):
        named = named.get("content")
    return named if isinstance(named, str) else None


def _of_hub(name: str) -> Tokenizer:
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        found = Path(hub.hf_hub_download(name, FILE))
    except Exception as error:
        other = isinstance(
            hub.try_to_load_from_cache(name, CONFIG), str
        )  # its files of another kind
        nowhere = isinstance(error, hub.errors.LocalEntryNotFoundError) and not other
        if isinstance(error, hub.errors.EntryNotFoundError) and not nowhere:
            return _of_transformers(name)
        words = " ".join(str(error).split())
        raise FlagError(
            "tokenizer",
            f"there is no such file, and the Hugging Face hub and its cache have no such model: "
            f"{words:.200}",
        ) from error
    try:
        config: Path | None = Path(hub.hf_hub_download(name, CONFIG))
    except Exception:
        config = None
    return _cached(_read(found), None if config is None else _end_beside(config))


def _of_transformers(name: str) -> Tokenizer:
    """A tokenizer that only transformers knows how to read."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise FlagError(
            "tokenizer",
            "has no tokenizer.json, and reading another kind needs transformers: "
            f'pip install "xcope[hf]" ({error})',
        ) from error
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:
        words = " ".join(str(error).split())
        raise FlagError("tokenizer", f"transformers cannot read it: {words:.200}") from error
    fast = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        raise FlagError("tokenizer", "is written in Python alone: save it as a tokenizer.json")
    return _cached(fast.to_str(), loaded.eos_token)


def train_tokenizer(texts: Iterable[str], size: int, *, progress: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer with `END` as its first token.

    Args:
        texts: read once, one after the other.
        size: of the vocabulary: the 256 bytes, `END`, and merges.

    Raises:
        FlagError: a size that is too small or too large (flag ``size``), or texts with less than
            that many different pieces.
    """
    if not 257 <= size <= MOST_TOKENS:
        raise FlagError(
            "size", f"size={size} is not allowed: 257 (the bytes and an end) to {MOST_TOKENS:,}"
        )
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    failed: list[BaseException] = []

    def work() -> None:
        try:
            tokenizer.train_from_iterator(texts, trainer)
        except BaseException as error:  # it is raised below
            failed.append(error)

    # the library's loops hear no Ctrl-C; this thread, which only waits, does
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.1)
    if failed:
        raise failed[0]
    return Tokenizer(tokenizer.to_str(pretty=True), END)
