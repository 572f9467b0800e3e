"""What a positional scheme is: options, the slot it fills, and the module that fills it."""

from __future__ import annotations

import dataclasses
import enum
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.options import is_a


class Slot(enum.Enum):
    """Where positions enter a decoder."""

    INPUT = "input"
    """added to the token embedding"""
    ROTATION = "rotation"
    """angles by which q and k are rotated"""
    BIAS = "bias"
    """a function of query and key index, added to the attention logits"""
    ATTEND = "attend"
    """the attention operation itself"""


@dataclass(frozen=True)
class Geometry:
    """The decoder that a scheme is built for.

    ``max_seq_len`` is only known to schemes of the input slot, which the wrapper builds; 0
    elsewhere.
    """

    dim: int
    heads: int
    dim_head: int
    max_seq_len: int = 0


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """One positional scheme with its options (the dataclass fields).

    A subclass is a frozen dataclass in a file of its own under ``xcope/positions/``, decorated
    with `xcope.positions.register`. Option ``max_pos`` of scheme ``cope`` is the keyword flag
    ``cope_max_pos`` of `xcope.Decoder` and the key ``max_pos`` of
    ``position: {name: cope, max_pos: 64}`` in YAML.
    """

    name: ClassVar[str]
    slot: ClassVar[Slot | None]
    """None: nothing is built (``none``), or the scheme is a pair of others (see `parts`)."""
    paper: ClassVar[str]
    formula: ClassVar[str]
    upstream_switch: ClassVar[str | None] = None
    """x-transformers' flag that turns the scheme on, if it has the scheme."""
    upstream_options: ClassVar[Mapping[str, str]] = {}
    """x-transformers' spelling of an option → its name here."""
    upstream_kwargs: ClassVar[str | None] = None
    """x-transformers' flag whose value is a mapping of options, if it has one."""

    def __post_init__(self) -> None:
        """Refuse values of the wrong type.

        Raises:
            FlagError: names the flag and the type.
        """
        hints = typing.get_type_hints(type(self))
        for option in self.options():
            value = getattr(self, option)
            if not is_a(value, hints[option]):
                flag = f"{self.name}_{option}"
                wanted = getattr(hints[option], "__name__", None) or str(hints[option])
                if typing.get_origin(hints[option]) is not None:
                    wanted = str(hints[option])
                raise FlagError(flag, f"{flag}={value!r} is not of type {wanted}")

    def parts(self) -> tuple[Scheme, ...]:
        """The schemes that this one stands for: itself, unless it is a combination."""
        return (self,)

    @abstractmethod
    def build(self, geometry: Geometry) -> nn.Module | None:
        """The module that fills the slot, freshly initialised.

        Raises:
            FlagError: an option that does not fit the geometry.
        """

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Option name → dataclass field (type, default)."""
        return {field.name: field for field in dataclasses.fields(cls)}

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {
            name: getattr(self, name)
            for name, field in self.options().items()
            if getattr(self, name) != field.default
        }

    def label(self) -> str:
        """``cope``, or ``cope(max_pos=64)`` where options differ from their defaults."""
        given = ", ".join(f"{name}={value}" for name, value in self.given().items())
        return f"{self.name}({given})" if given else self.name

    def require(self, ok: bool, option: str, allowed: str) -> None:
        """Raise an error that names the flag unless ``ok``."""
        if not ok:
            flag = f"{self.name}_{option}"
            raise FlagError(flag, f"{flag}={getattr(self, option)!r} is not allowed: {allowed}")


class AddedToInput(nn.Module, ABC):
    """A module of the input slot."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """What is added to the embeddings of ``x``.

        Args:
            x: token ids, (b n); only the shape and device are read.
            pos: int64 positions, (n) or (b n), instead of ``offset … offset + n − 1``.
            seq_start_pos: (b), where each left-padded row begins.
            offset: position of the first token, where a cache precedes it.

        Returns:
            (n dim) or (b n dim).
        """


def token_positions(
    x: Tensor, pos: Tensor | None, seq_start_pos: Tensor | None, offset: int
) -> Tensor:
    """Integer positions as `AddedToInput.forward` describes them; below 0 only where padded."""
    if pos is None:
        pos = torch.arange(x.shape[1], device=x.device) + offset
    if seq_start_pos is not None:
        pos = pos - seq_start_pos[..., None]
    return pos
