"""Presets: the positional part of released models, said with our schemes.

position: {preset: gemma3}                with the sizes of the released model
position: {preset: gemma3, window: 64}    with one of its own, for a small model

A preset stands for what ``position`` could say without it, layer by layer; ``xcope config`` prints
that. Nothing else of the model is in it: neither widths and heads nor norms of queries and keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from xcope.errors import FlagError, listing
from xcope.registry import Named, add, make


@dataclass(frozen=True, kw_only=True)
class Preset(Named, ABC):
    """The positional part of a released model.

    Its options are the sizes that a smaller model may need otherwise; the defaults are those of the
    released one.
    """

    title: ClassVar[str]
    """Of the model."""
    source: ClassVar[str]
    """Who released it, the year, and where it is described."""

    def __post_init__(self) -> None:
        """See `Named.check_types`; and sizes are above 0."""
        self.check_types()
        for option in self.options():
            value = getattr(self, option)
            above = not isinstance(value, int | float) or value > 0
            self.require(above, option, "it must be above 0")

    @classmethod
    def flag(cls, option: str) -> str:
        """``gemma3_window``: by which errors name an option."""
        return f"{cls.name}_{option}"

    @abstractmethod
    def position(self) -> Any:
        """What ``position`` would say without the preset."""


P = TypeVar("P", bound=type[Preset])
_PRESETS: dict[str, type[Preset]] = {}


def _released(preset: P) -> P:
    """Class decorator: list the preset under its name."""
    add(_PRESETS, preset.name, preset, "preset")
    return preset


def presets() -> Mapping[str, type[Preset]]:
    """Name → preset."""
    return dict(sorted(_PRESETS.items()))


def preset(name: object, options: Mapping[str, Any], schemes: Collection[str]) -> Preset:
    """The preset called ``name`` with ``options``.

    Args:
        schemes: their names, which are told from a slip.

    Raises:
        FlagError: an unknown name or option, with the nearest valid one; an option whose value is
            not allowed.
    """
    if not isinstance(name, str):
        raise FlagError(
            "position",
            f"preset={name!r} is no name: choose among {listing(presets())}, as {{preset: qwen3}}",
        )
    elsewhere = {"name": schemes}
    return make(presets(), name, options, flag="position", noun="preset", elsewhere=elsewhere)


# -- what the models below are made of ------------------------------------------------------------


def _rotary(name: str = "rotary", layout: str = "half_split", /, **options: Any) -> dict[str, Any]:
    """A rotary scheme that turns the whole head, by default in halves as LLaMA's checkpoints."""
    return {"name": name, "dim": "whole", "layout": layout, **options}


def _window(size: int, **options: Any) -> dict[str, Any]:
    return {"name": "window", "size": size, **options}


@dataclass(frozen=True, kw_only=True)
class _Interleaved(Preset):
    """Layers of two kinds.

    Args:
        every: layers of a period, the last of which is of the other kind.
    """

    every: int

    def layers(self, most: Any, last: Any) -> dict[str, Any]:
        """``every`` − 1 times the one, then the other."""
        return {"layers": [most] * (self.every - 1) + [last]}


# -- the models ------------------------------------------------------------------------------------


@_released
@dataclass(frozen=True, kw_only=True)
class SmolLM3(_Interleaved):
    """Three layers with rotary, then one without positions.

    Args:
        base: of rotary.
    """

    name: ClassVar[str] = "smollm3"
    title: ClassVar[str] = "SmolLM3 3B"
    source: ClassVar[str] = "Hugging Face 2025, huggingface.co/blog/smollm3"

    base: float = 5_000_000.0
    every: int = 4

    def position(self) -> Any:
        """See `Preset`."""
        return self.layers(_rotary(base=self.base), "none")


@_released
@dataclass(frozen=True, kw_only=True)
class Llama3(Preset):
    """Rotary whose slow pairs are stretched eightfold; with ``factor: 1`` Llama 3 of April 2024.

    Args:
        base: of rotary.
        factor: by which the slow pairs turn slower.
        trained_len: the length in tokens before that.
    """

    name: ClassVar[str] = "llama3"
    title: ClassVar[str] = "Llama 3.1 8B to 405B"
    source: ClassVar[str] = "Meta 2024, arXiv 2407.21783"

    base: float = 500_000.0
    factor: float = 8.0
    trained_len: int = 8192

    def position(self) -> Any:
        """See `Preset`."""
        trained = {"original_max_position_embeddings": self.trained_len}
        return _rotary("rotary_llama3", base=self.base, factor=self.factor, **trained)


@_released
@dataclass(frozen=True, kw_only=True)
class Llama4(_Interleaved):
    """Three layers with rotary within chunks, then one without positions that sees everything and
    whose logits grow with the place.

    Args:
        base: of rotary.
        factor: by which the slow pairs of rotary turn slower; 1, as of Maverick, for none.
        trained_len: the length in tokens before that.
        chunk: tokens that see each other in layers with rotary.
        floor: the places in which the factor of the logits stays the same.
    """

    name: ClassVar[str] = "llama4"
    title: ClassVar[str] = "Llama 4 Scout"
    source: ClassVar[str] = "Meta 2025, ai.meta.com/blog/llama-4-multimodal-intelligence"

    base: float = 500_000.0
    factor: float = 16.0
    trained_len: int = 8192
    chunk: int = 8192
    floor: int = 8192
    every: int = 4

    def position(self) -> Any:
        """See `Preset`."""
        turned = _rotary(
            "rotary_llama3",
            "interleaved",
            base=self.base,
            factor=self.factor,
            low_freq_factor=1.0,
            high_freq_factor=1.0,
            original_max_position_embeddings=self.trained_len,
        )
        scaled_logits = {"name": "length_scale", "kind": "llama4", "every": self.floor}
        return self.layers([turned, _window(self.chunk, chunked=True)], scaled_logits)


@_released
@dataclass(frozen=True, kw_only=True)
class Gemma3(_Interleaved):
    """Five layers with rotary in a window, then one with slower rotary that sees everything.

    Only the last one's angles are divided by ``factor``.

    Args:
        base: of rotary in layers that see everything.
        factor: by which their angles are divided; 1, as of the 1B model, for none.
        local_base: of rotary in a window.
        window: keys that a query sees there, itself among them; of the 1B model 512.
    """

    name: ClassVar[str] = "gemma3"
    title: ClassVar[str] = "Gemma 3 4B to 27B"
    source: ClassVar[str] = "Google 2025, arXiv 2503.19786"

    base: float = 1_000_000.0
    factor: float = 8.0
    local_base: float = 10_000.0
    window: int = 1024
    every: int = 6

    def position(self) -> Any:
        """See `Preset`."""
        local = [_rotary(base=self.local_base), _window(self.window)]
        return self.layers(local, _rotary("rotary_linear", base=self.base, factor=self.factor))


@_released
@dataclass(frozen=True, kw_only=True)
class Gemma4(_Interleaved):
    """Five layers with rotary in a window, then one that sees everything and turns a quarter of its
    pairs, the fast ones.

    Args:
        base: of rotary in layers that see everything.
        share: of their pairs that turn.
        local_base: of rotary in a window.
        window: keys that a query sees there, itself among them; of the small models 512.
    """

    name: ClassVar[str] = "gemma4"
    title: ClassVar[str] = "Gemma 4 31B"
    source: ClassVar[str] = "Google 2026, huggingface.co/google/gemma-4-31B-it"

    base: float = 1_000_000.0
    share: float = 0.25
    local_base: float = 10_000.0
    window: int = 1024
    every: int = 6

    def position(self) -> Any:
        """See `Preset`."""
        local = [_rotary(base=self.local_base), _window(self.window)]
        turned = {"base": self.base, "partial_rotary_factor": self.share}
        return self.layers(local, _rotary("rotary_proportional", **turned))


@_released
@dataclass(frozen=True, kw_only=True)
class CommandA(_Interleaved):
    """Three layers with rotary in a window, then one without positions that sees everything.

    Args:
        base: of rotary.
        window: keys that a query sees there, itself among them.
    """

    name: ClassVar[str] = "command_a"
    title: ClassVar[str] = "Command A"
    source: ClassVar[str] = "Cohere 2025, arXiv 2504.00698"

    base: float = 50_000.0
    window: int = 4096
    every: int = 4

    def position(self) -> Any:
        """See `Preset`."""
        turned = _rotary("rotary", "interleaved", base=self.base)
        return self.layers([turned, _window(self.window)], "none")


@_released
@dataclass(frozen=True, kw_only=True)
class GptOss(_Interleaved):
    """YaRN in all layers, every other in a window, and a learned sink per head.

    Args:
        base: of rotary.
        factor: of YaRN.
        trained_len: the length in tokens before that.
        window: keys that a query sees in every other layer, itself among them.
    """

    name: ClassVar[str] = "gpt_oss"
    title: ClassVar[str] = "GPT-OSS 20B and 120B"
    source: ClassVar[str] = "OpenAI 2025, arXiv 2508.10925"

    base: float = 150_000.0
    factor: float = 32.0
    trained_len: int = 4096
    window: int = 128
    every: int = 2

    def position(self) -> Any:
        """See `Preset`."""
        scaled = {"factor": self.factor, "trained_len": self.trained_len, "truncate": False}
        turned = _rotary("rotary_yarn", base=self.base, **scaled)
        return self.layers([turned, _window(self.window), "sink"], [turned, "sink"])


@_released
@dataclass(frozen=True, kw_only=True)
class Qwen3(Preset):
    """Rotary that turns whole heads.

    Args:
        base: of rotary.
    """

    name: ClassVar[str] = "qwen3"
    title: ClassVar[str] = "Qwen3, dense and mixtures of experts"
    source: ClassVar[str] = "Alibaba 2025, arXiv 2505.09388"

    base: float = 1_000_000.0

    def position(self) -> Any:
        """See `Preset`."""
        return _rotary(base=self.base)


@_released
@dataclass(frozen=True, kw_only=True)
class Mistral(Preset):
    """Rotary in a window in all layers.

    Args:
        base: of rotary.
        window: keys that a query sees, itself among them.
    """

    name: ClassVar[str] = "mistral"
    title: ClassVar[str] = "Mistral 7B"
    source: ClassVar[str] = "Mistral AI 2023, arXiv 2310.06825"

    base: float = 10_000.0
    window: int = 4096

    def position(self) -> Any:
        """See `Preset`."""
        return [_rotary(base=self.base), _window(self.window)]


@_released
@dataclass(frozen=True, kw_only=True)
class Ministral3(Preset):
    """YaRN without its sharpening, and logits that grow with the place.

    Args:
        base: of rotary.
        factor: of YaRN.
        trained_len: the length in tokens before that; the factor of the logits, too, stays the same
            for so many places.
    """

    name: ClassVar[str] = "ministral3"
    title: ClassVar[str] = "Ministral 3 8B"
    source: ClassVar[str] = "Mistral AI 2025, huggingface.co/mistralai/Ministral-3-8B-Base-2512"

    base: float = 1_000_000.0
    factor: float = 16.0
    trained_len: int = 16_384

    def position(self) -> Any:
        """See `Preset`."""
        scaled = {"factor": self.factor, "trained_len": self.trained_len, "attention_factor": 1.0}
        scaled_logits = {"name": "length_scale", "kind": "ministral3", "every": self.trained_len}
        return [_rotary("rotary_yarn", base=self.base, **scaled), scaled_logits]


@_released
@dataclass(frozen=True, kw_only=True)
class Olmo3(_Interleaved):
    """Three layers with rotary in a window, then one with YaRN that sees everything.

    Args:
        base: of rotary.
        factor: of YaRN.
        trained_len: the length in tokens before that.
        window: keys that a query sees in layers without YaRN, itself among them.
    """

    name: ClassVar[str] = "olmo3"
    title: ClassVar[str] = "OLMo 3 7B and 32B"
    source: ClassVar[str] = "Ai2 2025, arXiv 2512.13961"

    base: float = 500_000.0
    factor: float = 8.0
    trained_len: int = 8192
    window: int = 4096
    every: int = 4

    def position(self) -> Any:
        """See `Preset`."""
        scaled = {"factor": self.factor, "trained_len": self.trained_len}
        local = [_rotary(base=self.base), _window(self.window)]
        return self.layers(local, _rotary("rotary_yarn", base=self.base, **scaled))


@_released
@dataclass(frozen=True, kw_only=True)
class Inkling(_Interleaved):
    """No rotary: each head learns how much keys at a distance weigh, for each query anew; five
    layers in a window, then one that sees everything.

    Args:
        width: numbers per head and query that mix the distances' weights.
        extent: distances that have weights, in layers that see everything.
        window: keys that a query sees in the others, itself among them.
    """

    name: ClassVar[str] = "inkling"
    title: ClassVar[str] = "Inkling"
    source: ClassVar[str] = "Thinking Machines 2026, huggingface.co/thinkingmachines/Inkling"

    width: int = 16
    extent: int = 1024
    window: int = 512
    every: int = 6

    def position(self) -> Any:
        """See `Preset`."""
        local = {"name": "relative", "width": self.width, "max_pos": self.window}
        everything = {**local, "max_pos": self.extent, "beyond": "zero"}
        return self.layers([local, _window(self.window)], everything)


@_released
@dataclass(frozen=True, kw_only=True)
class Phi3(Preset):
    """LongRoPE: each pair has factors of its own, and others in texts longer than in training.

    Args:
        base: of rotary.
        trained_len: the length in tokens up to which the short factors act.
        factor: how many times that is to be read.
        short_factor: of each pair, in texts up to ``trained_len``; None, for heads that are not 96
            wide: 1 for all.
        long_factor: of each pair, in longer ones; None likewise: NTK-aware scaling by ``factor``.
    """

    name: ClassVar[str] = "phi3"
    title: ClassVar[str] = "Phi-3.5 mini"
    source: ClassVar[str] = "Microsoft 2024, arXiv 2404.14219"

    base: float = 10_000.0
    trained_len: int = 4096
    factor: float = 32.0
    # fmt: off
    short_factor: tuple[float, ...] | None = (
        1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16,
        1.17, 1.29, 1.34, 1.68, 1.79, 1.82, 1.85, 1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02,
        2.02, 2.02, 2.02, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.08, 2.09,
        2.19, 2.22, 2.59, 2.73, 2.75, 2.84,
    )
    long_factor: tuple[float, ...] | None = (
        1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09,
        12.2, 17.67, 24.46, 28.57, 30.42, 30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45,
        57.55, 57.93, 58.21, 60.14, 62.61, 62.62, 62.71, 63.14, 63.14, 63.77, 63.93, 63.96,
        63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84,
    )
    # fmt: on

    def position(self) -> Any:
        """See `Preset`."""
        return _rotary(
            "rotary_longrope",
            base=self.base,
            factor=self.factor,
            original_max_position_embeddings=self.trained_len,
            short_factor=None if self.short_factor is None else list(self.short_factor),
            long_factor=None if self.long_factor is None else list(self.long_factor),
        )


@_released
@dataclass(frozen=True, kw_only=True)
class Mpt(Preset):
    """ALiBi in all layers."""

    name: ClassVar[str] = "mpt"
    title: ClassVar[str] = "MPT 7B and 30B"
    source: ClassVar[str] = "MosaicML 2023, databricks.com/blog/mpt-7b"

    def position(self) -> Any:
        """See `Preset`."""
        return "alibi"


@_released
@dataclass(frozen=True, kw_only=True)
class Bloom(Preset):
    """ALiBi in all layers."""

    name: ClassVar[str] = "bloom"
    title: ClassVar[str] = "BLOOM 176B"
    source: ClassVar[str] = "BigScience 2022, arXiv 2211.05100"

    def position(self) -> Any:
        """See `Preset`."""
        return "alibi"


@_released
@dataclass(frozen=True, kw_only=True)
class T5Decoder(Preset):
    """A learned bias for each head and bucket of distances, the same in all layers.

    Args:
        num_buckets: of distances, half of them for the shortest.
        max_distance: where the logarithmic buckets end.
    """

    name: ClassVar[str] = "t5"
    title: ClassVar[str] = "T5, its decoder"
    source: ClassVar[str] = "Google 2019, arXiv 1910.10683"

    num_buckets: int = 32
    max_distance: int = 128

    def position(self) -> Any:
        """See `Preset`."""
        return {"name": "t5", "num_buckets": self.num_buckets, "max_distance": self.max_distance}


@_released
@dataclass(frozen=True, kw_only=True)
class Pythia(Preset):
    """Rotary that turns a quarter of each head, as in GPT-NeoX 20B.

    Args:
        base: of rotary.
        share: of each head's channels that turn.
    """

    name: ClassVar[str] = "pythia"
    title: ClassVar[str] = "Pythia 70M to 12B"
    source: ClassVar[str] = "EleutherAI 2023, arXiv 2304.01373"

    base: float = 10_000.0
    share: float = 0.25

    def position(self) -> Any:
        """See `Preset`."""
        return _rotary(base=self.base, dim=self.share)


@_released
@dataclass(frozen=True, kw_only=True)
class GptJ(Preset):
    """Rotary that turns a quarter of each head, neighbouring channels together.

    Args:
        base: of rotary.
        share: of each head's channels that turn.
    """

    name: ClassVar[str] = "gptj"
    title: ClassVar[str] = "GPT-J 6B"
    source: ClassVar[str] = "EleutherAI 2021, github.com/kingoflolz/mesh-transformer-jax"

    base: float = 10_000.0
    share: float = 0.25

    def position(self) -> Any:
        """See `Preset`."""
        return _rotary("rotary", "interleaved", base=self.base, dim=self.share)
