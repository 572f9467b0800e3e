"""The one file that knows x-transformers' insides: where a scheme's module is put.

x-transformers builds the decoder without positions; then each slot is filled here:

    input     TransformerWrapper.pos_emb
    rotation  AttentionLayers.rotary_pos_emb
    bias      AttentionLayers.rel_pos
    attend    Attention.attend, whose ``cope`` holds the parameters

Everything relied on is checked when a decoder is built; `SeamError` names the supported versions
when something moved.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from x_transformers import AutoregressiveWrapper as UpstreamAutoregressiveWrapper
from x_transformers import Decoder as UpstreamDecoder
from x_transformers import TransformerWrapper as UpstreamTransformerWrapper
from x_transformers.attend import Attend, Intermediates
from x_transformers.x_transformers import (
    AlibiPositionalBias,
    Attention,
    AttentionLayers,
    FeedForward,
)

from xcope.errors import FlagError, words_of
from xcope.positions import Slot
from xcope.positions.alibi import AlibiBias
from xcope.positions.cope import CoPE

M = TypeVar("M", bound=nn.Module)

SUPPORTED = ">=2.31.10,<2.32"
"""Versions of x-transformers that this file is written for and tested with."""

UPSTREAM_ONLY: dict[str, Slot] = {
    "rel_pos_bias": Slot.BIAS,
    "dynamic_pos_bias": Slot.BIAS,
    "attn_data_dependent_alibi": Slot.BIAS,
    "attn_use_rel_proj_pos_bias": Slot.BIAS,
    "rotary_xpos": Slot.ROTATION,
    "polar_pos_emb": Slot.ROTATION,
}
"""x-transformers' switches of schemes that have no file here: it builds them itself."""


class SeamError(RuntimeError):
    """x-transformers is not as this package knows it."""


# -- what is relied on ---------------------------------------------------------------------------


def _require(owner: object, names: Sequence[str]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        installed = importlib.metadata.version("x-transformers")
        raise SeamError(
            f"x-transformers {installed}: {type(owner).__name__} has no {', '.join(missing)}; "
            f"this version of xcope supports x-transformers{SUPPORTED}"
        )


def check_layers(layers: nn.Module) -> None:
    """Raise `SeamError` unless the attention layers have what is filled or read here."""
    _require(layers, ["rotary_pos_emb", "rel_pos", "disable_abs_pos_emb", "attn_heads"])
    _require(layers, ["attn_dim_head", "residual_attn", "num_attn_layers", "layers", "layer_types"])
    for attention in self_attentions(layers):
        _require(attention, ["attend", "heads", "kv_heads"])
        _require(attention.attend, ["scale", "causal", "cope", "attn_fn", "dropout", *_PLAIN_OFF])


def check_wrapper(wrapper: nn.Module) -> None:
    """Raise `SeamError` unless the wrapper has what is filled or read here."""
    _require(wrapper, ["pos_emb", "can_cache_kv_outside_max_seq_len", "attn_layers", "max_seq_len"])


def self_attentions(layers: Any) -> list[Attention]:
    """The self-attention modules, first layer first."""
    kinds, blocks = layers.layer_types, layers.layers
    return [
        next(module for module in block.modules() if isinstance(module, Attention))
        for kind, (_, block, _) in zip(kinds, blocks, strict=True)
        if kind == "a"
    ]


# -- which flags there are -----------------------------------------------------------------------


def _keywords(function: Callable[..., Any], prefix: str = "") -> set[str]:
    return {
        prefix + name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name != "self"
    }


@cache
def upstream_decoder_flags() -> frozenset[str]:
    """Every keyword of x-transformers' Decoder, those of its parts with their prefix."""
    return frozenset(
        (_keywords(AttentionLayers.__init__) - {"causal"})
        | (_keywords(Attention.__init__, "attn_") - {"attn_dim", "attn_heads", "attn_causal"})
        | _keywords(Attention.__init__, "cross_attn_")
        | (_keywords(FeedForward.__init__, "ff_") - {"ff_dim"})
    )


@cache
def upstream_wrapper_flags() -> frozenset[str]:
    """Every keyword of x-transformers' TransformerWrapper."""
    return frozenset(_keywords(UpstreamTransformerWrapper.__init__))


def refused(flag: str, error: AssertionError) -> FlagError:
    """x-transformers' assertion as an error for people."""
    return FlagError(flag, f"x-transformers refuses these flags: {words_of(error)}")


# -- filling the slots ---------------------------------------------------------------------------


def _as(cls: type[M], module: nn.Module) -> M:
    """``module`` with its settings and parameters, as an instance of ``cls``."""
    new = cls.__new__(cls)
    new.__dict__ = module.__dict__.copy()
    return new


class _AlibiSlot(AlibiBias, AlibiPositionalBias):  # type: ignore[misc]
    """Our ALiBi as x-transformers' class, which it asks for where ``pos=`` is given."""

    forward = AlibiBias.forward
    forward_custom_pos = AlibiBias.forward_custom_pos


def fill_input(wrapper: Any, module: nn.Module) -> None:
    """Put a module of the input slot into the wrapper."""
    wrapper.pos_emb = module
    # a cut-off window would renumber the places that the cache was built with
    wrapper.can_cache_kv_outside_max_seq_len = False


def fill_rotation(layers: nn.Module, module: nn.Module) -> None:
    """Put a module of the rotation slot into the decoder; all layers share it."""
    layers.rotary_pos_emb = module


def fill_bias(layers: nn.Module, module: nn.Module) -> None:
    """Put a module of the bias slot into the decoder; all layers share it."""
    layers.rel_pos = _as(_AlibiSlot, module) if type(module) is AlibiBias else module


def fill_attend(attention: Attention, cope: CoPE, keep_logits: bool) -> None:
    """Put CoPE into one attention layer.

    Args:
        attention: the layer.
        cope: its module.
        keep_logits: another part of the decoder reads this layer's logits, so that they must be
            materialised.
    """
    if cope.sep_keys:
        _add_gate_keys(attention)
    if cope.val_gates and attention.to_v.out_features != attention.to_k.out_features:
        raise FlagError(
            "cope_val_gates",
            "cope_val_gates=True needs values as wide as the keys: drop attn_value_dim_head",
        )
    attention.attend = CoPEAttend.adopt(attention.attend, cope, keep_logits)


class _KeysAndGateKeys(nn.Linear):
    """Projects to the keys and, as further heads behind them, to the keys of the gates.

    So the gates' keys share the keys' way through x-transformers: split, normalised, rotated,
    cached.
    """

    gate_weight: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat((super().forward(input), F.linear(input, self.gate_weight)), dim=-1)


def _add_gate_keys(attention: Attention) -> None:
    """Give the layer a second projection, for the gates' keys."""
    taken = {
        "attn_qk_norm_dim_scale": attention.qk_norm_dim_scale,
        "attn_qk_rmsnorm or attn_k_rmsnorm": attention.k_rmsnorm is not None,
        "attn_use_latent_kv": attention.use_latent_kv,
        "rotate_num_heads": attention.rotate_num_heads < attention.heads,
    }
    for flag, on in taken.items():
        if on:
            raise FlagError(
                "cope_sep_keys", f"cope_sep_keys=True does not go together with {flag}: drop one"
            )
    keys = _as(_KeysAndGateKeys, attention.to_k)
    fresh = nn.Linear(keys.in_features, keys.out_features, bias=False)
    keys.gate_weight = nn.Parameter(fresh.weight.detach())
    attention.to_k = keys
    if attention.num_mem_kv > 0:
        attention.mem_k = nn.Parameter(attention.mem_k.detach().repeat(2, 1, 1))


# Attributes of Attend that must be off for its softmax to be the plain one.
_PLAIN_OFF = (
    "pre_softmax_talking_heads",
    "post_softmax_talking_heads",
    "pre_scale_post_talking_heads",
    "selective",
    "cog_signed",
    "l2_distance",
    "add_zero_kv",
    "head_learned_sink",
    "softclamp_logits",
    "inverted_attention",
)


class CoPEAttend(Attend):  # type: ignore[misc]
    """x-transformers' attention operation with CoPE inside.

    Where its softmax is the plain one, `cope_attention` does the work and no (h i j) tensor
    exists; where a flag changes the softmax or reads its logits, x-transformers' own (h i j) path
    runs with our CoPE for the bias.
    """

    keep_logits: bool

    @classmethod
    def adopt(cls, attend: Attend, cope: CoPE, keep_logits: bool) -> CoPEAttend:
        """``attend`` with its settings and parameters, as this class."""
        new = _as(cls, attend)
        new.cope = cope
        new.keep_logits = keep_logits
        return new

    @property
    def plain(self) -> bool:
        """Whether the softmax is the ordinary one, without dropout, and nobody reads its logits."""
        softmax = getattr(self.attn_fn, "func", None) is F.softmax
        dropped = self.training and self.dropout > 0
        off = not any(getattr(self, name) for name in _PLAIN_OFF)
        return softmax and off and not dropped and not self.keep_logits

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        prev_attn: Tensor | None = None,
        attn_delta: Tensor | None = None,
        causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Intermediates]:
        """As x-transformers' Attend: (b h i d) in and out, (b 1 i d) keys for one head."""
        gate_k = v if self.cope.val_gates else None
        if self.cope.sep_keys:
            k, gate_k = k.chunk(2, dim=1)
        others = (attn_bias, prev_attn, attn_delta)
        if self.plain and not any(other is not None for other in others):
            causal = self.causal if causal is None else causal
            return self._fused(q, k, v, gate_k, mask, causal), Intermediates()
        if gate_k is not None:
            gate_k = gate_k.repeat(1, q.shape[1] // gate_k.shape[1], 1, 1)
        with self.cope.gates_from(gate_k, self._scale(q)):
            return super().forward(  # type: ignore[no-any-return]
                q,
                k,
                v,
                mask=mask,
                attn_bias=attn_bias,
                prev_attn=prev_attn,
                attn_delta=attn_delta,
                causal=causal,
                **kwargs,
            )

    def _scale(self, q: Tensor) -> float:
        return float(q.shape[-1] ** -0.5 if self.scale is None else self.scale)

    def _fused(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate_k: Tensor | None,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        cope: CoPE = self.cope
        h, kv_heads = q.shape[1], k.shape[1]
        given: dict[str, Any] = {"scale": self._scale(q), "causal": causal, "gate_k": gate_k}
        if not 1 < kv_heads < h:
            return cope.attend(q, k, v, mask=mask, **given)
        # x-transformers' query head a uses key head a mod kv_heads; our ops, as everyone
        # else, a // groups: put the queries into that order and the output back.
        order = torch.arange(h, device=q.device).view(h // kv_heads, kv_heads).T.flatten()
        if mask is not None and mask.ndim == 4 and mask.shape[1] == h:
            mask = mask[:, order]
        out = cope.attend(q[:, order], k, v, mask=mask, head_order=order, **given)
        return out[:, order.argsort()]


@contextmanager
def logits_kept(layers: nn.Module) -> Iterator[None]:
    """Within, CoPE layers materialise their logits, for callers that want to see them."""
    attends = [module for module in layers.modules() if isinstance(module, CoPEAttend)]
    before = [attend.keep_logits for attend in attends]
    for attend in attends:
        attend.keep_logits = True
    try:
        yield
    finally:
        for attend, kept in zip(attends, before, strict=True):
            attend.keep_logits = kept


__all__ = [
    "SUPPORTED",
    "UPSTREAM_ONLY",
    "AttentionLayers",
    "CoPEAttend",
    "SeamError",
    "UpstreamAutoregressiveWrapper",
    "UpstreamDecoder",
    "UpstreamTransformerWrapper",
    "check_layers",
    "check_wrapper",
    "fill_attend",
    "fill_bias",
    "fill_input",
    "fill_rotation",
    "logits_kept",
    "refused",
    "self_attentions",
    "upstream_decoder_flags",
    "upstream_wrapper_flags",
]
