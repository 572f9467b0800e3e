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


class XCopeConfig(PreTrainedConfig):
    """The model section of a config, with the number of tokens: all that builds the decoder.

        XCopeConfig(num_tokens=256, dim=64, depth=2, heads=4, position="cope", cope_max_pos=64)

    transformers' names mean the same: ``vocab_size`` is ``num_tokens``, ``hidden_size`` ``dim``,
    ``num_hidden_layers`` ``depth``, ``num_attention_heads`` ``heads``, ``head_dim`` ``dim_head``,
    ``max_position_embeddings`` ``max_seq_len``.

    Args:
        num_tokens: size of the vocabulary.
        max_seq_len: rows of a table of absolute positions. Other schemes take longer inputs; to
            transformers it is the length that prompts are cut to.
        dim: width of the residual stream.
        depth: blocks of attention and feed-forward.
        heads: query heads.
        dim_head: width of a head; None: ``dim / heads``.
        position: the scheme, see `xcope.Decoder`.
        flags: further flags of `xcope.Decoder` and `xcope.TransformerWrapper`; each may be a
            keyword of its own instead.
        tie_word_embeddings: the same as the flag ``tie_embedding``.
        use_cache: whether calls give a cache, where one can be kept, and are not of training.

    Raises:
        FlagError: a keyword that is nearly one of our flags. Flags are checked when the model is
            built.
    """

    model_type: ClassVar[str] = "xcope"
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "num_tokens",
        "max_position_embeddings": "max_seq_len",
        "hidden_size": "dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "head_dim": "dim_head",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]

    num_tokens: int = 256
    max_seq_len: int = 1024
    dim: int = 128
    depth: int = 2
    heads: int = 8
    dim_head: int | None = None
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
        if self.dim_head is None and self.dim % self.heads == 0:
            self.dim_head = self.dim // self.heads

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: a file beside the weights imports this class, see `CODE`."""

    def section(self) -> ModelConfig:
        """The model section of an xcope config."""
        from xcope.config.schema import ModelConfig  # noqa: PLC0415

        return ModelConfig(
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            dim_head=self.dim_head,
            max_seq_len=self.max_seq_len,
            position=self.position,
            **(self.flags or {}),
        )


def register(auto: ModuleType) -> None:
    """Put the class among those of ``transformers.AutoConfig``."""
    auto.AutoConfig.register(XCopeConfig.model_type, XCopeConfig, exist_ok=True)
