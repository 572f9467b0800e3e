"""The one file that knows x-transformers' insides: where a scheme's module is put.

x-transformers builds the decoder without positions; then each slot is filled here:

    input     TransformerWrapper.pos_emb
    rotation  AttentionLayers.rotary_pos_emb, or polar_pos_emb
    bias      AttentionLayers.rel_pos
    attend    Attention.attend, whose ``cope`` holds CoPE's parameters, or, for forgetting
              attention, Attention.data_dependent_alibi

There the modules have x-transformers' names in state dicts. They act in one place only,
`SchemeAttend`, which every self-attention gets: the layers hand each attention the places of its
tokens (under the name of rotary's angles), attention hands them on to ``attend`` (under the name
of the bias).

Everything relied on is checked when a decoder is built; `SeamError` names the supported versions
when something moved.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
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
    Attention,
    AttentionLayers,
    FeedForward,
    MVSplitResidualUpdate,
    OrthogonalResidualUpdate,
    ShiftTokens,
)

from xcope.errors import FlagError, words_of
from xcope.modules.attend import Call, Part
from xcope.modules.groups import CoPEOfGroups, attend_by_groups, written_out
from xcope.modules.places import Places
from xcope.ops.documents import within_documents
from xcope.positions import Slot
from xcope.positions.cope import CoPE

M = TypeVar("M", bound=nn.Module)

SUPPORTED = ">=2.31.10,<2.32"
"""Versions of x-transformers that this file is written for and tested with."""

UPSTREAM_ONLY: dict[str, Slot] = {
    "attn_use_rel_proj_pos_bias": Slot.BIAS,
    "attn_data_dependent_alibi_per_row": Slot.ATTEND,
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
    _require(layers, ["rotary_pos_emb", "polar_pos_emb", "rel_pos", "disable_abs_pos_emb"])
    _require(layers, ["attn_heads", "attn_dim_head", "residual_attn", "num_attn_layers"])
    _require(layers, ["layers", "layer_types", "can_cache_kv"])
    for attention in self_attentions(layers):
        _require(attention, ["attend", "heads", "kv_heads", "num_mem_kv", "data_dependent_alibi"])
        _require(attention, ["hybrid_module", "orthog_projected_values"])
        _require(attention, ["orthog_projected_values_per_head"])
        _require(attention.attend, ["scale", "causal", "cope", "attn_fn", "dropout", *_PLAIN_OFF])


def check_wrapper(wrapper: nn.Module) -> None:
    """Raise `SeamError` unless the wrapper has what is filled or read here."""
    _require(wrapper, ["pos_emb", "can_cache_kv_outside_max_seq_len", "attn_layers", "max_seq_len"])
    _require(wrapper, ["num_memory_tokens", "cls_token", "attn_pool", "average_pool_embed"])


def self_attentions(layers: Any) -> list[Attention]:
    """The self-attention modules, first layer first."""
    return _attentions(layers, "a")


def cross_attentions(layers: Any) -> list[Attention]:
    """The cross-attention modules, first layer first."""
    return _attentions(layers, "c")


def _attentions(layers: Any, wanted: str) -> list[Attention]:
    kinds, blocks = layers.layer_types, layers.layers
    return [
        next(module for module in block.modules() if isinstance(module, Attention))
        for kind, (_, block, _) in zip(kinds, blocks, strict=True)
        if kind == wanted
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


def fill_input(wrapper: Any, module: nn.Module) -> None:
    """Put a module of the input slot into the wrapper."""
    wrapper.pos_emb = module
    # a cut-off window would renumber the places that the cache was built with
    wrapper.can_cache_kv_outside_max_seq_len = False


def clear_rotation(layers: Any) -> None:
    """Drop the angles that x-transformers made."""
    layers.rotary_pos_emb = None


def keep_shared(layers: nn.Module, name: str, module: nn.Module) -> None:
    """Register what several layers share, under x-transformers' name where this is free.

    Args:
        layers: the decoder.
        name: ``rotary_pos_emb``, ``polar_pos_emb`` or ``rel_pos``.
        module: one of several, if schemes differ from layer to layer.
    """
    free = (f"{name}_{index}" for index in range(1, 1000))
    chosen = next(n for n in (name, *free) if getattr(layers, n, None) is None)
    setattr(layers, chosen, module)


def shadow(attention: Attention, name: str, module: nn.Module) -> None:
    """Keep a module in state dicts under x-transformers' name, which its forward sees as None."""
    attention.__dict__[name] = None
    attention._modules[name] = module


def forget_cache(layers: Any) -> None:
    """Generation computes everything anew for each token."""
    layers.can_cache_kv = False


def needs_all_tokens(attention: Attention) -> bool:
    """Whether what a token gives changes as more tokens follow, so that nothing can be cached."""
    rotations = [part.rotation for part in attention.attend.parts if part.rotation is not None]
    memories = attention.num_mem_kv > 0
    # a scheme that x-transformers builds itself knows nothing of its cache
    foreign = not attention.forgets and "data_dependent_alibi" in attention._modules
    return foreign or any(r.length_dependent or (r.scales and memories) for r in rotations)


_MEETING: dict[type[nn.Module], str] = {
    ShiftTokens: "shift_tokens",
    OrthogonalResidualUpdate: "orthog_residual",
    MVSplitResidualUpdate: "mv_split_residual",
}
"""Modules in which tokens meet elsewhere than in attention, and their flags."""


def check_packed(layers: Any) -> None:
    """Raise a `FlagError` if something in the decoder knows nothing of packed documents."""
    on = [_MEETING[type(module)] for module in layers.modules() if type(module) in _MEETING]
    for attention in self_attentions(layers):
        flags = {
            "attn_num_mem_kv": attention.num_mem_kv > 0,
            "attn_hybrid_module": attention.hybrid_module is not None,
            "attn_orthog_projected_values": attention.orthog_projected_values,
            "attn_orthog_projected_values_per_head": attention.orthog_projected_values_per_head,
            "attn_selective": attention.attend.selective,
        }
        on += [flag for flag, value in flags.items() if value]
        if needs_all_tokens(attention):
            raise FlagError(
                "cu_seqlens",
                "cu_seqlens does not go together with what follows the length of the row: dynamic "
                "NTK, or a variant of ALiBi that x-transformers builds itself",
            )
    if on:
        raise FlagError(
            on[0],
            f"{on[0]} does not go together with cu_seqlens: it acts across documents; drop it, or "
            "give each document a row of its own",
        )


def check_packed_wrapper(wrapper: Any) -> None:
    """Raise a `FlagError` if something around the decoder knows nothing of packed documents."""
    flags = {
        "num_memory_tokens": wrapper.num_memory_tokens > 0,
        "use_cls_token": wrapper.cls_token is not None,
        "attn_pool": wrapper.attn_pool is not None,
        "average_pool_embed": wrapper.average_pool_embed,
    }
    for flag, on in flags.items():
        if on:
            raise FlagError(
                flag,
                f"{flag} does not go together with cu_seqlens: it is for the row, not for each "
                "document; drop it, or give each document a row of its own",
            )


def fill_attention(attention: Attention, parts: Sequence[Part], keep_logits: bool) -> None:
    """Let one self-attention layer follow its schemes.

    Args:
        attention: the layer.
        parts: of its groups of heads.
        keep_logits: another part of the decoder reads this layer's logits, so that they must be
            materialised.
    """
    if attention.data_dependent_alibi is not None:  # a variant that only x-transformers has
        shadow(attention, "data_dependent_alibi", attention.data_dependent_alibi)
    for part in parts:
        if part.rotation is not None and part.rotation.widens and attention.num_mem_kv > 0:
            raise FlagError(
                "attn_num_mem_kv",
                f"attn_num_mem_kv={attention.num_mem_kv} is not allowed with position 'pope', "
                "whose keys are wider than the learned memories: drop one of them",
            )
        if part.forgetting is not None:
            shadow(attention, "data_dependent_alibi", part.forgetting)
        if part.cope is not None:
            _check_gates(attention, part.cope)
    if any(part.cope is not None and part.cope.sep_keys for part in parts):
        _add_gate_keys(attention)
    attention.__class__ = PlacedAttention
    attention.forgets = any(part.forgetting is not None for part in parts)
    attention.attend = SchemeAttend.adopt(attention.attend, parts, keep_logits)


def fill_cross_attention(attention: Attention, part: Part) -> None:
    """Let one cross-attention layer rotate its queries and its context by their places."""
    attention.__class__ = PlacedAttention
    attention.forgets = False
    attention.attend = SchemeAttend.adopt(attention.attend, [part], keep_logits=False)


def _check_gates(attention: Attention, cope: CoPE) -> None:
    if cope.val_gates and attention.to_v.out_features != attention.to_k.out_features:
        raise FlagError(
            "cope_val_gates",
            "cope_val_gates=True needs values as wide as the keys: drop attn_value_dim_head",
        )


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


class PlacedAttention(Attention):  # type: ignore[misc]
    """x-transformers' attention, whose positions are left to `SchemeAttend`."""

    forgets: bool

    def forward(
        self,
        x: Tensor,
        *args: Any,
        rel_pos: Any = None,
        pos: Any = None,
        rotary_pos_emb: Places | None = None,
        context_rotary_pos_emb: Tensor | None = None,
        polar_pos_emb: Any = None,
        attn_bias: Tensor | None = None,
        cache: Intermediates | None = None,
        return_intermediates: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As x-transformers'; the layers' places come as ``rotary_pos_emb``."""
        if rotary_pos_emb is None:  # cross attention whose context has no places
            call = None
        elif context_rotary_pos_emb is not None:
            call = Call(Places(context_rotary_pos_emb), q_places=rotary_pos_emb)
        else:
            call = Call(rotary_pos_emb, attn_bias)
        extra = self._modules.get("data_dependent_alibi")
        gates = None
        if self.forgets and call is not None:
            gates = self._log_gates(extra, x, kwargs.get("mem"), cache)
            call = replace(call, log_gates=gates)
            cache = _without_gates(cache)
        elif extra is not None and call is not None:
            call = call + F.pad(extra(x), (self.num_mem_kv, 0))
        out = super().forward(
            x,
            *args,
            attn_bias=call,
            cache=cache,
            return_intermediates=return_intermediates,
            **kwargs,
        )
        if gates is not None and return_intermediates:
            _, inter = out
            inter.cached_kv = (*inter.cached_kv, gates[..., None])
        return out

    def _log_gates(
        self, forgetting: Any, x: Tensor, mem: Tensor | None, cache: Intermediates | None
    ) -> Tensor:
        """Of all keys, (b h j): x-transformers' cache holds them beside k and v."""
        gates: Tensor = forgetting.log_gates(x)
        if cache is not None and len(cache.cached_kv) > 2:
            gates = torch.cat((cache.cached_kv[2][..., 0], gates), dim=-1)
        if mem is not None:
            gates = torch.cat((forgetting.log_gates(mem), gates), dim=-1)
        return gates


def _without_gates(inter: Intermediates | None) -> Intermediates | None:
    return None if inter is None else replace(inter, cached_kv=tuple(inter.cached_kv[:2]))


class SchemeAttend(Attend):  # type: ignore[misc]
    """x-transformers' attention operation under the schemes of its layer.

    Where its softmax is the plain one, `attend_by_groups` does the work and no (h i j) tensor
    exists; where a flag changes the softmax or reads its logits, x-transformers' own (h i j) path
    runs on turned queries and keys, with the bias written out.
    """

    parts: tuple[Part, ...]
    keep_logits: bool

    @classmethod
    def adopt(cls, attend: Attend, parts: Sequence[Part], keep_logits: bool) -> SchemeAttend:
        """``attend`` with its settings and parameters, as this class."""
        new = _as(cls, attend)
        new.parts = tuple(parts)
        new.keep_logits = keep_logits
        copes = [part.cope for part in parts]
        own = [part.bias for part in parts if part.bias is not None and part.own_bias]
        if own:
            new.bias = own[0] if len(parts) == 1 else nn.ModuleList(own)
        new.cope = copes[0] if len(parts) == 1 else CoPEOfGroups(parts) if any(copes) else None
        if any(copes):
            new.flash = False  # where x-transformers' path runs, its flash attention has no CoPE
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
        attn_bias: Call | Tensor | None = None,
        prev_attn: Tensor | None = None,
        attn_delta: Tensor | None = None,
        causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Intermediates]:
        """As x-transformers' Attend: (b h i d) in and out, (b 1 i d) keys for one head."""
        if isinstance(attn_bias, Call):
            call, parts = attn_bias, self.parts
        else:  # nobody said where the keys stand: what needs no places acts
            call = Call(Places(torch.arange(0, device=k.device)), attn_bias)
            parts = tuple(Part(part.heads, cope=part.cope) for part in self.parts)
        copes = [part.cope for part in parts if part.cope is not None]
        gate_k = v if any(cope.val_gates for cope in copes) else None
        if any(cope.sep_keys for cope in copes):
            k, gate_k = k.chunk(2, dim=1)
        causal = self.causal if causal is None else causal
        scale = float(q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        others = (call.bias, prev_attn, attn_delta)
        biased = any(part.bias is not None for part in parts)
        free_order = biased and (call.places.given or not (causal or q.shape[-2] == 1))
        if self.plain and not free_order and all(other is None for other in others):
            given: dict[str, Any] = {"scale": scale, "mask": mask, "causal": causal}
            return attend_by_groups(parts, call, q, k, v, gate_k, **given), Intermediates()
        if call.places.documents is not None:
            mask = within_documents(mask, call.places.documents, k.shape[-2])
        q, k, v, gate_k, bias = written_out(parts, call, q, k, v, gate_k)
        with _gates_from(self.cope, gate_k, scale):
            return super().forward(  # type: ignore[no-any-return]
                q,
                k,
                v,
                mask=mask,
                attn_bias=bias,
                prev_attn=prev_attn,
                attn_delta=attn_delta,
                causal=causal,
                **kwargs,
            )


def _gates_from(cope: Any, gate_k: Tensor | None, scale: float) -> AbstractContextManager[None]:
    return nullcontext() if cope is None else cope.gates_from(gate_k, scale)


@contextmanager
def logits_kept(layers: nn.Module) -> Iterator[None]:
    """Within, attention materialises its logits, for callers that want to see them."""
    attends = [module for module in layers.modules() if isinstance(module, SchemeAttend)]
    before = [(attend.keep_logits, attend.flash) for attend in attends]
    for attend in attends:
        attend.keep_logits, attend.flash = True, False
    try:
        yield
    finally:
        for attend, (kept, flash) in zip(attends, before, strict=True):
            attend.keep_logits, attend.flash = kept, flash


__all__ = [
    "SUPPORTED",
    "UPSTREAM_ONLY",
    "AttentionLayers",
    "SchemeAttend",
    "SeamError",
    "UpstreamAutoregressiveWrapper",
    "UpstreamDecoder",
    "UpstreamTransformerWrapper",
    "check_layers",
    "check_packed",
    "check_packed_wrapper",
    "check_wrapper",
    "clear_rotation",
    "cross_attentions",
    "fill_attention",
    "fill_cross_attention",
    "fill_input",
    "forget_cache",
    "keep_shared",
    "logits_kept",
    "needs_all_tokens",
    "refused",
    "self_attentions",
    "upstream_decoder_flags",
    "upstream_wrapper_flags",
]
