"""What a task is: splits of endless seeded data, a vocabulary, and the metric that is reported."""

from __future__ import annotations

import hashlib
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.errors import FlagError, did_you_mean, listing
from xcope.registry import Named, hints, is_a

IGNORE = -100
"""Target of tokens that are not scored (cross entropy's ``ignore_index``)."""

LARGEST = 2**20
"""Of the numbers that are options of a task."""

T = TypeVar("T")
_KINDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    list: "a list",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Batch:
    """Inputs and what should follow them.

    Args:
        tokens: (b n) int64.
        targets: (b n) int64; ``targets[:, t]`` should follow ``tokens[:, : t + 1]``, `IGNORE`
            where nothing is scored.
        bytes: (b n) int64: of the text, that each target stands for; None where it is one each, or
            where there is no text.
        starts: (b n) bool: where a document begins that sees nothing of what stands before it in
            its row; None: a row is one whole.
    """

    tokens: Tensor
    targets: Tensor
    bytes: Tensor | None = None
    starts: Tensor | None = None

    def rows(self, which: slice) -> Batch:
        """Some of its rows."""
        return self._each(lambda tensor: tensor[which])

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = (self.tokens, self.targets, self.bytes, self.starts)
        return Batch(*(None if one is None else change(one) for one in tensors))  # type: ignore[arg-type]

    def logits(self, model: Callable[..., Tensor]) -> Tensor:
        """What a model says on it, (b n num_tokens); documents are packed into one row."""
        if self.starts is None:
            return model(self.tokens)
        begins = self.starts.flatten().nonzero()[:, 0]
        cu_seqlens = F.pad(begins, (0, 1), value=self.starts.numel())
        logits = model(self.tokens.reshape(1, -1), cu_seqlens=cu_seqlens)
        return logits.reshape(*self.tokens.shape, -1)


@dataclass(frozen=True, kw_only=True)
class Task(Named, ABC):
    """One task with its options (the dataclass fields). A subclass is one file.

    It is decorated with `xcope.tasks.register`. Options are checked in ``__post_init__``, here
    for their type and in the subclass with `require` for their value.

    Raises:
        FlagError: an option whose type or value is not allowed; its flag is the option's name.
    """

    paper: ClassVar[str]
    metric: ClassVar[str]
    """The headline metric, by its name in `xcope.training.metrics`."""

    def __post_init__(self) -> None:
        for option in self.options():
            hint = hints(type(self))[option]
            kinds = typing.get_args(hint) or (hint,)
            needed = (
                " or ".join(_KINDS[typing.get_origin(kind) or kind] for kind in kinds)
                + " is needed"
            )
            value = getattr(self, option)
            self.require(is_a(value, hint), option, needed)
            # vocabularies and sequences of that many are lists
            small = not isinstance(value, int) or abs(value) <= LARGEST
            self.require(small, option, f"at most {LARGEST:,}")

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Size of the vocabulary."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the test splits, in distribution first; ``"train"`` is not among them."""

    @property
    def validation(self) -> str:
        """The split that values are picked on (``tune``), in distribution. An endless task draws
        it from the first test split, by another seed; where text is finite it has text of its
        own."""
        return self.splits[0]

    @property
    def measurable(self) -> tuple[str, ...]:
        """The test splits, and `validation`: what a model can be measured on."""
        return tuple(dict.fromkeys((*self.splits, self.validation)))

    @property
    def every_split(self) -> tuple[str, ...]:
        """``"train"`` and what is `measurable`."""
        return ("train", *self.measurable)

    @property
    def length_splits(self) -> tuple[str, ...]:
        """The first of `splits` and those that differ from it only in length, shortest first: the
        points of a curve over length."""
        return self.splits[:1]

    @abstractmethod
    def seq_len(self, split: str) -> int:
        """Tokens per sequence of ``"train"`` or a test split."""

    @abstractmethod
    def sample(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch; all randomness comes from ``generator`` (on the CPU)."""

    def check_data(self) -> None:
        """Read what the sequences are drawn from, and refuse too little of it.

        A task can be made, and its tokens encoded and decoded, where its data are not at hand.

        Raises:
            FlagError: data that cannot be read, or that a split cannot be drawn from.
        """

    def sizes(self) -> Mapping[str, Mapping[str, int]]:
        """Side of the data → how much there is; nothing for a task whose data never end."""
        return {}

    def notes(self) -> list[str]:
        """What a person should know of the data before anything is trained on them."""
        return []

    def kept(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """What a run has to keep to make the task again when its data are gone.

        Returns:
            Option → the file of the run's folder that takes its place, and file → content.
        """
        return {}, {}

    def batch(self, split: str, batch_size: int, seed: int, index: int) -> Batch:
        """Batch number ``index`` of the endless stream (split, seed): the same on any machine."""
        return self.sample(split, batch_size, stream_generator(self.name, split, seed, index))

    @property
    def max_seq_len(self) -> int:
        """The longest sequence of any split."""
        return max(map(self.seq_len, self.every_split))

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt that a person typed.

        Raises:
            FlagError: a symbol that the vocabulary lacks.
        """

    @abstractmethod
    def decode(self, tokens: list[int]) -> str:
        """Tokens as a person reads them; ``encode`` takes it back."""

    def for_split(self, split: str, values: Mapping[str, T]) -> T:
        """What ``values`` has for ``split``.

        Raises:
            FlagError: a split that is not there (flag ``split``).
        """
        if split not in values:
            raise FlagError(
                "split",
                f"task {self.name!r} has no split {split!r}: choose among {listing(values)}"
                f"{did_you_mean(split, values)}",
            )
        return values[split]


def next_token_batch(sequence: Tensor, scored: Tensor) -> Batch:
    """Whole sequences as inputs, each token's successor as its target.

    Args:
        sequence: (b n) int64.
        scored: bool, (n) or (b n): the tokens of ``sequence`` that a model has to foretell. The
            first cannot be one.
    """
    targets = torch.full_like(sequence, IGNORE)
    targets[:, :-1] = sequence[:, 1:].masked_fill(~scored[..., 1:], IGNORE)
    return Batch(sequence, targets)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), float64: fine enough that sorting them shuffles without ties."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def stream_generator(*key: str | int) -> torch.Generator:
    """A CPU generator seeded by a hash of ``key``.

    Keys that differ in one place give unrelated streams. PyTorch's CPU generator uses 32 bits of
    a seed, so two given keys share a stream with chance 2⁻³².
    """
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
