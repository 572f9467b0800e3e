"""Text: a language model of source code or any other text, by bytes or with any tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from xcope.data import Recipe
from xcope.data.tokenizer import BYTES, FILE
from xcope.files import IsPath
from xcope.tasks.base import IGNORE, Batch
from xcope.tasks.corpus import CorpusTask
from xcope.tasks.registry import register
from xcope.tasks.stretch import Stretchable

TOKENIZER = IsPath(or_name=True, suffixes=(".json",), names=(BYTES,))


@register
@dataclass(frozen=True, kw_only=True)
class Text(Stretchable, CorpusTask):
    """Random windows of ``length`` tokens; the token after each of them is scored.

    Windows begin anywhere and may run from one document into the next of the same split. Splits
    ``longer_2x``, … have longer windows of the held-out text. Bits per byte are those of the text,
    whatever the tokenizer; the end of a document counts as one byte.

    Args:
        length: tokens per window, in training and held out.
        tokenizer: ``bytes``; a ``tokenizer.json`` or a folder with one; or a model of the Hugging
            Face hub. None: bytes, or the tokenizer of the shards that the corpus is.
        packed: what stands before a document in its window is not seen from it (``cu_seqlens``),
            and its first token is not scored.
        stretch: see `Stretchable`.
        corpus: see `CorpusTask`, as ``glob``, ``field``, ``held_out`` and ``validation_share``.
    """

    name: ClassVar[str] = "text"
    paper: ClassVar[str] = "-"
    metric: ClassVar[str] = "bits_per_byte"

    length: int = 256
    tokenizer: Annotated[str, TOKENIZER] | None = None
    packed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.length >= 1, "length", "at least 1 token")

    @property
    def recipe(self) -> Recipe:
        name = None if self.tokenizer is None else TOKENIZER.located(self.tokenizer)
        return dataclasses.replace(super().recipe, tokenizer=name)

    def kept(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        files = self.reads.kept()
        return ({"tokenizer": FILE} if files else {}), files

    def check_data(self) -> None:
        for split in self.every_split:
            self.tokens_of(split)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("held_out", *self.multiples)

    def tokens_of(self, split: str) -> int:
        """Tokens that the windows of a split are drawn from.

        Raises:
            FlagError: too few for a window and its next token.
        """
        has, needs = len(self.opened.streams[self.side(split)]), self.seq_len(split) + 1
        what = "bytes" if self.opened.tokenizer.json is None else "tokens"
        self.require(
            has >= needs,
            "stretch" if split in self.multiples else "length",
            f"split {split!r} has {has} {what}, and a window with its next one must fit, "
            f"{needs} {what}",
        )
        return has

    def seq_len(self, split: str) -> int:
        return self.multiple(split) * self.length

    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        stream, length = self.opened.streams[self.side(split)], self.seq_len(split)
        last = self.tokens_of(split) - length
        start = torch.randint(last, (batch_size, 1), generator=generator)
        found, counted = stream.windows(start[:, 0].tolist(), length + 1)
        window = torch.from_numpy(found)
        tokens, targets = window[:, :-1], window[:, 1:]
        bytes = None if counted is None else torch.from_numpy(counted)[:, 1:]
        if not self.packed:
            return Batch(tokens, targets, bytes)
        ends = tokens == self.opened.tokenizer.separator
        starts = ends.roll(1, dims=1)
        starts[:, 0] = True
        return Batch(tokens, targets.masked_fill(ends, IGNORE), bytes, starts)
