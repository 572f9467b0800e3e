"""`XCopeConfig`: what a decoder is, as Hugging Face transformers writes it to ``config.json``."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from xcope.errors import FlagError

if TYPE_CHECKING:
    from xcope.config.schema import ModelConfig

CODE = "modeling_xcope"
"""The file beside the weights by which ``trust_remote_code=True`` finds our classes."""
TYPING_SLIP = 0.85
"""How alike a keyword and one of our flags must be for it to be a slip, and not for others."""


class XCopeConfig(PreTrainedConfig):  # type: ignore[misc]
    """The model section of a config, with the number of tokens: all that builds the decoder.

        XCopeConfig(num_tokens=256, dim=64, depth=2, heads=4, position="cope", cope_max_pos=64)

    ``config.json`` and tools have transformers' names, which are keywords, too.

    Args:
        vocab_size: ``num_tokens``, size of the vocabulary.
        max_position_embeddings: ``max_seq_len``, rows of a table of absolute positions. Other
            schemes take longer inputs; to tools it is the length that prompts are cut to.
        hidden_size: ``dim``, width of the residual stream.
        num_hidden_layers: ``depth``, blocks of attention and feed-forward.
        num_attention_heads: ``heads``, query heads.
        head_dim: ``dim_head``, width of a head; None: ``dim / heads``.
        position: the scheme, see `xcope.Decoder`.
        flags: further flags of `xcope.Decoder` and `xcope.TransformerWrapper`; each may be a
            keyword of its own instead.
        tie_word_embeddings: the same as the flag ``tie_embedding``.
        use_cache: whether calls give a cache, where one can be kept, and are not of training.

    Raises:
        FlagError: a keyword that is nearly one of our flags. Values are checked when the model is
            built.
    """

    model_type: ClassVar[str] = "xcope"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_tokens": "vocab_size",
        "max_seq_len": "max_position_embeddings",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "dim_head": "head_dim",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]

    vocab_size: int = 256
    max_position_embeddings: int = 1024
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    head_dim: int | None = None
    position: str | dict[str, Any] | list[Any] | None = None
    flags: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Sort the keywords: ours become ``flags``, the others are transformers'."""
        from xcope.config.schema import known_keys  # noqa: PLC0415  reads torch: when it is needed

        for name in self.attribute_map.keys() & kwargs.keys():
            setattr(self, name, kwargs.pop(name))
        known = set(known_keys("model"))
        self.flags = {**(self.flags or {}), **{k: kwargs.pop(k) for k in known & kwargs.keys()}}
        for key in kwargs:
            near = difflib.get_close_matches(key, known, n=1, cutoff=TYPING_SLIP)
            if near:
                raise FlagError(key, f"XCopeConfig has no {key!r}; did you mean {near[0]!r}?")
        if self.tie_word_embeddings:
            self.flags["tie_embedding"] = True
        self.tie_word_embeddings = bool(self.flags.get("tie_embedding"))
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": f"{CODE}.XCopeConfig",
                "AutoModelForCausalLM": f"{CODE}.XCopeForCausalLM",
            },
        )
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: a file beside the weights imports this class, see `CODE`."""

    def section(self) -> ModelConfig:
        """The model section of an xcope config.

        Raises:
            FlagError: a value of the wrong type or size.
        """
        from pydantic import ValidationError  # noqa: PLC0415

        from xcope.config.schema import ModelConfig  # noqa: PLC0415

        names = {ours: getattr(self, ours) for ours in self.attribute_map if ours != "num_tokens"}
        try:
            return ModelConfig(**names, position=self.position, **(self.flags or {}))
        except ValidationError as error:
            first = error.errors()[0]
            flag = str(first["loc"][0])
            raise FlagError(
                flag, f"{flag}={first['input']!r} is not allowed: {first['msg']}"
            ) from (None)


def register(auto: ModuleType) -> None:
    """Put the class among those of ``transformers.AutoConfig``."""
    auto.AutoConfig.register(XCopeConfig.model_type, XCopeConfig, exist_ok=True)
