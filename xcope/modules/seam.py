"""The one file that knows x-transformers' insides: where a scheme's module is put.

x-transformers builds the decoder without positions; then each slot is filled here:

    input     TransformerWrapper.pos_emb
    rotation  AttentionLayers.rotary_pos_emb, or polar_pos_emb
    bias      AttentionLayers.rel_pos
    attend    Attention.attend, as ``cope`` of which the module is registered, or, for forgetting
              attention, Attention.data_dependent_alibi
    sink      Attention.attend.head_attn_sink
    scale     Attention.attend, as ``length_scale``

There the modules have x-transformers' names in state dicts. They act in one place only,
`SchemeAttend`, which every self-attention gets: the layers hand each attention the places of its
tokens (under the name of rotary's angles), attention hands them on to ``attend`` (under the name
of packed documents).

Everything relied on is checked when a decoder is built; `SeamError` names the supported versions
when something moved.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import set_checkpoint_early_stop
from x_transformers import AutoregressiveWrapper as UpstreamAutoregressiveWrapper
from x_transformers import Decoder as UpstreamDecoder
from x_transformers import TransformerWrapper as UpstreamTransformerWrapper
from x_transformers.attend import Attend, Intermediates
from x_transformers.x_transformers import (
    Attention,
    AttentionLayers,
    FeedForward,
    LayerIntermediates,
    LayerNorm,
    LoRALinear,
    MVSplitResidualUpdate,
    OrthogonalResidualUpdate,
    ShiftTokens,
)

from xcope.errors import FlagError, words_of
from xcope.modules.attention import (
    Gates,
    LayerCall,
    Part,
    added_by_modules,
    attend,
    attend_groups,
    bias_of,
    gate_keys_of,
    keys_of_each_head,
    mask_of,
    read_by,
    sink_of_heads,
    softmax_only,
    turned,
    weights_of,
    with_heads,
)
from xcope.modules.places import Places
from xcope.ops.documents import within_documents
from xcope.positions import AttendInputs, AttendModule, Rotation, Slot
from xcope.positions.sink import HeadSinks

M = TypeVar("M", bound=nn.Module)

SUPPORTED = ">=2.31.10,<2.32"
"""Versions of x-transformers that this file is written for and tested with."""

UPSTREAM_ONLY: dict[str, tuple[Slot, ...]] = {
    "attn_use_rel_proj_pos_bias": (Slot.BIAS,),
}
"""x-transformers' switches of schemes that have no file here, as it builds them itself, and the
slots that they fill."""


_SELF_ALONE = "it is for self-attention: drop it"
_SET_BY_LAYERS = "x-transformers sets it itself, from {} of the layers: set that one"

REFUSED: dict[str, str] = {
    "attn_inverted_attention": "x-transformers ignores it in self-attention: drop it",
    "cross_attn_inverted_attention": "its softmax over the queries lets a token see later ones",
    "attn_dim_context": "self-attention has no context: set cross_attn_dim_context",
    "attn_hybrid_mask_kwarg": "a causal layer gives its hybrid module no mask: drop it",
    "attn_rotate_num_heads": _SET_BY_LAYERS.format("rotate_num_heads"),
    "attn_learned_value_residual_mix": _SET_BY_LAYERS.format("learned_value_residual_mix"),
    "attn_qkv_receive_diff_residuals": _SET_BY_LAYERS.format("qkv_receive_diff_residuals"),
    "attn_output_proj_depth": _SET_BY_LAYERS.format("depth_scale_residual"),
    "cross_attn_output_proj_depth": _SET_BY_LAYERS.format("depth_scale_residual"),
    "ff_output_proj_depth": _SET_BY_LAYERS.format("depth_scale_residual"),
    "cross_attn_dim": _SET_BY_LAYERS.format("dim"),
    "cross_attn_heads": _SET_BY_LAYERS.format("heads"),
    "cross_attn_causal": "every token sees the whole context: drop it",
    "cross_attn_qkv_receive_diff_residuals": _SELF_ALONE,
    "cross_attn_selective": _SELF_ALONE,
    "cross_attn_data_dependent_alibi": _SELF_ALONE,
    "cross_attn_data_dependent_alibi_per_row": _SELF_ALONE,
    "cross_attn_use_cope": _SELF_ALONE,
    "cross_attn_orthog_projected_values": _SELF_ALONE,
    "cross_attn_orthog_projected_values_per_head": _SELF_ALONE,
    "attn_z_loss_weight": "x-transformers ignores it here: pass it to the call",
    "cross_attn_flash_pack_seq": "cross-attention does not know of documents: drop it",
}
"""x-transformers' keywords that it ignores itself or that lead to nothing but errors → why, and
what to do instead."""


PLACES_AS = ("rotary_pos_emb", "polar_pos_emb")
"""The keywords by which the layers hand the places on to their attentions, instead of angles."""

_CALL_AS = "flash_pack_seq_kwargs"
"""The keyword that attention hands on to ``attend`` as it is; documents are told by the places."""


class SeamError(RuntimeError):
    """x-transformers is not as this package knows it."""


# -- what is relied on ---------------------------------------------------------------------------


def _require(owner: object, names: Sequence[str]) -> None:
    _check_moved(type(owner).__name__, [name for name in names if not hasattr(owner, name)])


def _check_moved(owner: str, missing: Sequence[str]) -> None:
    if missing:
        installed = importlib.metadata.version("x-transformers")
        raise SeamError(
            f"x-transformers {installed}: {owner} has no {', '.join(missing)}; "
            f"this version of xcope supports x-transformers{SUPPORTED}"
        )


def check_layers(layers: nn.Module) -> None:
    """Raise `SeamError` unless the attention layers have what is filled or read here."""
    _require(layers, ["rotary_pos_emb", "polar_pos_emb", "rel_pos", "disable_abs_pos_emb"])
    _require(layers, ["attn_heads", "attn_dim_head", "residual_attn", "num_attn_layers"])
    _require(layers, ["layers", "layer_types", "can_cache_kv"])
    for cls in (Attention, Attend):
        _check_moved(cls.__name__, sorted({_CALL_AS} - _keywords(cls.forward)))
    for attention in self_attentions(layers):
        _require(attention, ["attend", "heads", "kv_heads", "num_mem_kv", "data_dependent_alibi"])
        _require(attention, ["hybrid_module", "orthog_projected_values"])
        _require(attention, ["orthog_projected_values_per_head", "rotate_num_heads"])
        _require(attention, ["to_rotateable_k", "qkv_receive_diff_residuals", "can_cache_kv"])
        _require(attention, ["max_attend_past", "rel_proj_pos_bias", "to_out", "attn_on_attn"])
        _require(attention, ["hybrid_norms", "to_v_gate", "to_v_head_gate", "use_latent_kv"])
        _require(attention.attend, ["scale", "causal", "cope", "attn_fn", "dropout", *_PLAIN_OFF])
        _require(attention.attend, ["head_learned_sink", "head_attn_sink"])


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


def _call(function: Callable[..., Any]) -> tuple[str, ...]:
    """Its arguments after the first one, in their order."""
    function = inspect.unwrap(function)
    if "eval_decorator" in function.__qualname__:  # which keeps what it decorates to itself
        function = inspect.getclosurevars(function).nonlocals["fn"]
    _, *names = (
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name != "self"
    )
    return tuple(names)


CALLS: dict[str, tuple[str, ...]] = {
    "Decoder": _call(AttentionLayers.forward),
    "TransformerWrapper": _call(UpstreamTransformerWrapper.forward),
    "AutoregressiveWrapper": _call(UpstreamAutoregressiveWrapper.forward),
    "generate": _call(UpstreamAutoregressiveWrapper.generate),
    "beam_search": _call(UpstreamAutoregressiveWrapper.beam_search),
}
"""What x-transformers' functions that people call take after x, or the prompts. What is not among
it they hand on: the wrapper for generation to its wrapper, and that to its layers."""

_ITSELF = frozenset({"return_intermediates", "looped_pred_all_logits"})
SETS_ITSELF: dict[str, frozenset[str]] = {
    "Decoder": frozenset(),
    "TransformerWrapper": frozenset({"return_hiddens", "deep_embeds_and_ids", "seq_pos_offset"}),
    "AutoregressiveWrapper": _ITSELF | {"return_attn_z_loss", "return_next_embed_pred"},
    "generate": frozenset({"cache", "seq_start_pos"}),
    "beam_search": frozenset({"cache", "seq_start_pos", "return_intermediates"}),
}
"""What these functions say to whom they call, so that nobody else can."""


_READS = dict.fromkeys(
    ("return_embeddings", "return_logits_and_embeddings", "return_embeddings_and_intermediates"),
    "logits alone are read here: call the model itself",
)
_GROWS = dict.fromkeys(
    ("attn_bias", "embed_ids", "sum_embeds", "self_attn_kv_residuals"),
    "it has an entry for each token, and the text grows: call the model itself",
)
_CACHED = {"cross_attn_kv_residuals": "keys of cross attention are cached: call the model itself"}
_BEAMS = dict.fromkeys(
    (
        "additional_kv_mask",
        "condition",
        "context",
        "context_mask",
        "in_attn_cond",
        "mem_masks",
        "mems",
        "prepend_embeds",
        "self_attn_additional_kv",
    ),
    "beams multiply the rows of the text, and not of it: take generate",
)
_NEXT = {"return_next_embed_pred": "logits alone are read here: call the model itself"}
REFUSED_HERE: dict[str, dict[str, str]] = {
    "Decoder": {},
    "TransformerWrapper": {},
    "AutoregressiveWrapper": _READS
    | {"excise_prepend_embeds": "the loss leaves out what is prepended by itself"},
    "generate": _READS | _NEXT | _GROWS | _CACHED,
    "beam_search": _READS
    | _NEXT
    | _GROWS
    | _CACHED
    | _BEAMS
    | {"eos_token": "x-transformers cannot end a beam there yet: take generate"},
}
"""Arguments of these functions that lead to nothing but errors → why, and what to do instead."""


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raise a `FlagError` if one of the flags is among those that are `REFUSED`."""
    for flag, reason in REFUSED.items():
        if flags.get(flag) not in (None, False):
            raise FlagError(flag, f"{flag}={flags[flag]!r} is not taken: {reason}")


@contextmanager
def errors_for_people(
    cls: type[nn.Module], flags: Mapping[str, Any], needed: Sequence[str]
) -> Iterator[None]:
    """Within, what x-transformers raises while it builds becomes a `FlagError`.

    It names the flags without any one of which the module can be built.

    Args:
        cls: x-transformers' class.
        flags: what it was given.
        needed: those that cannot be left out.
    """
    try:
        yield
    except FlagError:
        raise
    except Exception as error:
        given = [flag for flag in flags if flag not in needed]
        blamed = [flag for flag in given if _builds(cls, flags, without=flag)]
        said = " and ".join(f"{flag}={flags[flag]!r}" for flag in blamed) or "these flags"
        raise FlagError(
            blamed[0] if blamed else cls.__name__,
            f"x-transformers refuses {said}: {words_of(error)}",
        ) from error


def _builds(cls: type[nn.Module], flags: Mapping[str, Any], without: str) -> bool:
    try:
        with torch.device("meta"):
            cls(**{flag: value for flag, value in flags.items() if flag != without})
    except Exception:
        return False
    return True


def is_tied(wrapper: Any) -> bool:
    """Whether the output layer is the embedding's table."""
    return hasattr(wrapper, "tie_embedding_scale")


def tie_logits(wrapper: Any) -> None:
    """Let the output layer that is tied to the embedding belong to whoever holds it.

    x-transformers' is a function of this one wrapper: copies would call the original's embedding,
    and it cannot be pickled.
    """
    _require(wrapper, ["to_logits", "token_emb", "tie_embedding_scale"])
    wrapper.to_logits = partial(_tied_logits, wrapper)


def _tied_logits(wrapper: Any, x: Tensor) -> Tensor:
    tied: Tensor = x @ wrapper.token_emb.emb.weight.t()
    return tied * wrapper.tie_embedding_scale  # type: ignore[no-any-return]


def make_picklable(layers: nn.Module) -> None:
    """Exchange what cannot be copied or pickled: PyTorch's backends of attention."""
    for module in layers.modules():
        chosen = getattr(module, "sdp_context_manager", None)
        if isinstance(module, Attend) and isinstance(chosen, partial):
            names = tuple(backend.name for backend in chosen.args[0])
            module.sdp_context_manager = partial(_sdpa_kernel, names)


class _CopiedLoRALinear(LoRALinear):  # type: ignore[misc]
    """x-transformers', which cannot be made without arguments."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return object.__new__(cls)


def _sdpa_kernel(names: Sequence[str]) -> Any:
    return sdpa_kernel([getattr(SDPBackend, name) for name in names])


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


def forget_cache(layers: Any) -> None:
    """Generation computes everything again for each token."""
    layers.can_cache_kv = False
    # ContinuousTransformerWrapper asks the attentions
    for attention in (*self_attentions(layers), *cross_attentions(layers)):
        attention.can_cache_kv = False


def needs_all_tokens(attention: Attention) -> bool:
    """Whether what a token gives changes as more tokens follow, so that nothing can be cached."""
    rotations = [part.rotation for part in attention.attend.parts if part.rotation is not None]
    memories = attention.num_mem_kv > 0
    return any(r.length_dependent or (r.scales and memories) for r in rotations)


Kept: TypeAlias = tuple[Tensor | None, ...]
"""What an attention layer keeps of the tokens so far: keys, values, what its schemes remember."""


def kept_by(intermediates: LayerIntermediates) -> list[Kept]:
    """What each attention layer of a call keeps, first layer first."""
    return [tuple(layer.cached_kv) for layer in intermediates.attn_intermediates]


def cache_of(kept: Sequence[Kept], length: int) -> LayerIntermediates:
    """A call's ``cache`` of nothing but this, after ``length`` tokens."""
    layers = [Intermediates(cached_kv=tensors) for tensors in kept]
    return LayerIntermediates(attn_intermediates=layers, cache_length=length)


@contextmanager
def recomputed(
    wrapper: Any, checkpoint: Callable[..., Any], every_n_layers: int = 1
) -> Iterator[None]:
    """Within, blocks do not hold what they compute; the backward pass computes it again.

    Args:
        wrapper: the model.
        checkpoint: as `torch.utils.checkpoint.checkpoint`, without ``use_reentrant``.
        every_n_layers: of so many layers, each of attention and feed-forward, one.
    """
    layers = wrapper.attn_layers
    chosen = {
        id(block): block
        for index, (_, block, _) in enumerate(layers.layers)
        if index // layers.len_default_block % every_n_layers == 0
    }
    for block in chosen.values():
        block.forward = partial(checkpoint, block.forward)
    try:
        # what ends a recomputation early is an exception, which einx, inside a block, replaces
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for block in chosen.values():
            del block.forward


# -- back to x-transformers' own classes --------------------------------------------------------


def empty_slots(layers: Any) -> None:
    """Take what turns and what is added to logits out of the layers; its place stays."""
    for name in ("rotary_pos_emb", "polar_pos_emb", "rel_pos"):
        setattr(layers, name, None)


def only_part(attention: Attention) -> Part:
    """What all heads of a layer have.

    Raises:
        FlagError: its heads have different schemes.
    """
    parts: tuple[Part, ...] = attention.attend.parts
    if len(parts) > 1:
        raise FlagError(
            "position", "heads of one layer with different schemes are not known to x-transformers"
        )
    return parts[0]


def whole_rotation(part: Part) -> Rotation | None:
    """The rotation of which a part has some heads, or all."""
    return part.rotation.rotation if isinstance(part.rotation, LastHeads) else part.rotation


def restore_layers(layers: Any, own: Iterable[str]) -> None:
    """Let layers be x-transformers' ``Decoder`` again, all their modules its own.

    Args:
        layers: whose slots hold modules of x-transformers.
        own: names of attributes that only our class has.
    """
    for module in layers.modules():
        if isinstance(module, PlacedAttention):
            module.__class__ = Attention
        elif isinstance(module, SchemeAttend):
            module.__class__ = Attend
            module._modules.pop("bias", None)
            module._modules.pop("rotation", None)
            _drop(module, SchemeAttend.__annotations__)
        elif type(module) in _UPSTREAM_OF:
            module.__class__ = _UPSTREAM_OF[type(module)]
            _drop(module, ["inside"])
        chosen = getattr(module, "sdp_context_manager", None)
        if isinstance(chosen, partial) and chosen.func is _sdpa_kernel:
            backends = [getattr(SDPBackend, name) for name in chosen.args[0]]
            module.sdp_context_manager = partial(sdpa_kernel, backends)
    for attention in layers.modules():
        if isinstance(attention, Attention):
            attention.can_cache_kv = not attention.attend.selective
    layers.__class__ = UpstreamDecoder
    _drop(layers, own)
    _drop_hooks(layers)
    layers.can_cache_kv = all(m.can_cache_kv for m in layers.modules() if isinstance(m, Attention))


def restore_wrapper(wrapper: Any, own: Iterable[str]) -> None:
    """Let a wrapper be x-transformers' ``TransformerWrapper`` again; arguments as there."""
    wrapper.__class__ = UpstreamTransformerWrapper
    _drop(wrapper, own)
    _drop_hooks(wrapper)
    if is_tied(wrapper):
        wrapper.to_logits = lambda t: (
            (t @ wrapper.token_emb.emb.weight.t()) * wrapper.tie_embedding_scale
        )


def count_cache(wrapper: Any) -> None:
    """Let a wrapper around layers say anew whether they keep a cache."""
    plain = wrapper.num_memory_tokens == 0 and not wrapper.recycling
    wrapper.can_cache_kv = plain and wrapper.attn_layers.can_cache_kv


def _drop(module: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        vars(module).pop(name, None)


def _drop_hooks(module: nn.Module) -> None:
    """Take away what ours do when a state dict is loaded."""
    hooks = module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks
    for registered in hooks:
        for key, hook in [*registered.items()]:
            function = getattr(hook, "hook", hook)
            if getattr(function, "__module__", "").partition(".")[0] == "xcope":
                del registered[key]


# -- where tokens meet elsewhere than in causal attention -------------------------------------


class MaskedOrthogonalResidual(OrthogonalResidualUpdate):  # type: ignore[misc]
    """x-transformers' update, which sums over all tokens of a row, without those masked."""

    def forward(self, x: Tensor, residual: Tensor, mask: Tensor | None = None, **_: Any) -> Tensor:
        """(b n dim) in and out; ``mask`` is (b n)."""
        updated: Tensor = super().forward(_masked(x, mask), _masked(residual, mask))
        return updated


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (… n d), 0 where ``mask`` (b n) is False."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


class MaskedShiftTokens(ShiftTokens):  # type: ignore[misc]
    """x-transformers' shift, to which tokens that stand before a row are zeros.

    x-transformers gives its masks to attention only.
    """

    inside: Tensor | None = None

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """(… n dim) in, what the layer gives out."""
        return super().forward(_masked(x, self.inside), **kwargs)


@contextmanager
def shifted_within(layers: nn.Module, inside: Tensor | None) -> Iterator[None]:
    """Within, tokens are shifted only among those of ``inside``, (b n) bool; None: among all."""
    shifts = [module for module in layers.modules() if isinstance(module, MaskedShiftTokens)]
    for module in shifts:
        module.inside = inside
    try:
        yield
    finally:
        for module in shifts:
            module.inside = None


class FusedLayerNorm(LayerNorm):  # type: ignore[misc]
    """x-transformers' layer norm as one operation, which keeps one tensor less for the backward."""

    def forward(self, x: Tensor) -> Tensor:
        """(… dim) in and out."""
        if x.dtype != self.gamma.dtype:  # as x-transformers has it, of the wider dtype
            normed: Tensor = super().forward(x)
            return normed
        gamma = self.gamma + 1.0 if self.unit_offset else self.gamma
        return F.layer_norm(x, gamma.shape, gamma, eps=self.ln.eps)


_OURS_OF: dict[type[nn.Module], type[nn.Module]] = {
    LayerNorm: FusedLayerNorm,
    LoRALinear: _CopiedLoRALinear,
    OrthogonalResidualUpdate: MaskedOrthogonalResidual,
    ShiftTokens: MaskedShiftTokens,
}
"""What stands in for modules of x-transformers, with the same parameters."""

_UPSTREAM_OF = {ours: theirs for theirs, ours in _OURS_OF.items()}


def replace_modules(layers: nn.Module) -> None:
    """Let ours stand in for modules of x-transformers' that work worse in some respect."""
    for module in layers.modules():
        if type(module) in _OURS_OF:
            module.__class__ = _OURS_OF[type(module)]


_MEETING_MODULES: dict[type[nn.Module], str] = {
    MaskedShiftTokens: "shift_tokens",
    MaskedOrthogonalResidual: "orthog_residual",
    MVSplitResidualUpdate: "mv_split_residual",
}


@dataclass(frozen=True)
class Meeting:
    """A flag by which tokens meet elsewhere than in causal attention.

    Args:
        flag: its name.
        cached: whether a cache of keys and values holds all that later tokens need.
        padded: whether a mask is enough to keep out what stands before a row.
        packed: whether documents in one row stay apart.
    """

    flag: str
    cached: bool = False
    padded: bool = True
    packed: bool = False


def meetings(layers: Any) -> tuple[Meeting, ...]:
    """Where tokens of the decoder meet elsewhere than in causal attention."""
    kinds = dict.fromkeys(map(type, layers.modules()))
    found = [Meeting(flag) for kind, flag in _MEETING_MODULES.items() if kind in kinds]
    for attention in self_attentions(layers):
        hybrid = Meeting(
            "attn_hybrid_module",
            cached=getattr(attention.hybrid_module, "axial_dim", 1) == 1,
            padded=False,
        )
        on = {
            Meeting("attn_num_mem_kv", cached=True): attention.num_mem_kv > 0,
            hybrid: attention.hybrid_module is not None,
            Meeting("attn_orthog_projected_values"): attention.orthog_projected_values,
            Meeting("attn_orthog_projected_values_per_head"): (
                attention.orthog_projected_values_per_head
            ),
            Meeting("attn_selective", padded=False): attention.attend.selective,
        }
        found += [meeting for meeting, value in on.items() if value]
    for attention in cross_attentions(layers):
        on = {
            # these count from the last token
            Meeting("cross_attn_max_attend_past", packed=True): (
                attention.max_attend_past is not None
            ),
            Meeting("cross_attn_use_rel_proj_pos_bias", packed=True): (
                attention.rel_proj_pos_bias is not None
            ),
            Meeting("cross_attn_hybrid_module", padded=False): attention.hybrid_module is not None,
        }
        found += [meeting for meeting, value in on.items() if value]
    return tuple(dict.fromkeys(found))


def left_mask(
    given: Sequence[Meeting], x: Tensor, seq_start_pos: Tensor, mask: Tensor | None, lead: int
) -> Tensor | None:
    """``mask`` (b n), without what stands before the rows if tokens meet outside attention.

    ``lead`` of the n come before the padding: memory tokens, and embeddings that are prepended.

    Raises:
        FlagError: a flag for which no mask is enough.
    """
    for meeting in given:
        if not meeting.padded:
            raise FlagError(
                meeting.flag,
                f"{meeting.flag} does not go together with seq_start_pos: it would see what stands "
                "before a row that is padded on the left; give rows of unlike lengths one by one",
            )
    if not any(not meeting.cached for meeting in given):
        return mask
    slots = torch.arange(x.shape[1], device=x.device)
    inside = (slots < lead) | (slots - lead >= seq_start_pos[:, None])
    return inside if mask is None else mask & inside


def check_cached(given: Sequence[Meeting]) -> None:
    """Raise a `FlagError` if nothing can be cached."""
    for meeting in given:
        if not meeting.cached:
            raise FlagError(
                meeting.flag,
                f"{meeting.flag} does not go together with a cache: tokens meet elsewhere than in "
                "attention, or count from the last one; pass all tokens and no cache",
            )


def check_packed(layers: Any, given: Sequence[Meeting]) -> None:
    """Raise a `FlagError` if something in the decoder knows nothing of packed documents."""
    for attention in self_attentions(layers):
        if needs_all_tokens(attention):
            raise FlagError(
                "cu_seqlens",
                "cu_seqlens does not go together with what follows the length of the row, as "
                "dynamic NTK or LongRoPE",
            )
    for meeting in given:
        if not meeting.packed:
            raise FlagError(
                meeting.flag,
                f"{meeting.flag} does not go together with cu_seqlens: it acts across documents; "
                "drop it, or give each document a row of its own",
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


def check_widths(layers: Any) -> None:
    """Raise a `FlagError` if a branch does not fit the residual stream that it is added to."""
    _check_views(layers)
    for attention in self_attentions(layers):
        _check_attention(attention, "attn_", layers.dim)
    for attention in cross_attentions(layers):
        _check_attention(attention, "cross_attn_", layers.dim)
    for module in layers.modules():
        if isinstance(module, FeedForward):
            widths = [part.out_features for part in module.ff if isinstance(part, nn.Linear)]
            _check_width("ff_dim_out", widths[-1], layers.dim)


def _check_views(layers: Any) -> None:
    """Refuse queries, keys and values that shall differ where nothing tells them apart."""
    for (_, block, residual), mixed in zip(layers.layers, layers.layer_integrators, strict=True):
        for attention in block.modules():
            different = getattr(attention, "qkv_receive_diff_residuals", False)
            if different and mixed is None and getattr(residual, "num_input_views", 1) == 1:
                raise FlagError(
                    "qkv_receive_diff_residuals",
                    "qkv_receive_diff_residuals=True needs num_residual_streams above 1, or layers "
                    "that are mixed: integrate_layers or attn_aggregated_residuals",
                )


def _check_attention(attention: Attention, prefix: str, dim: int) -> None:
    if attention.hybrid_module is not None and attention.hybrid_norms is None:
        raise FlagError(
            f"{prefix}hybrid_module",
            f"{prefix}hybrid_module needs {prefix}hybrid_fold_axial_dim: 1 does not fold",
        )
    projections = [part for part in attention.to_out.modules() if isinstance(part, nn.Linear)]
    if projections:
        halves = 2 if attention.attn_on_attn else 1
        _check_width(f"{prefix}dim_out", projections[0].out_features // halves, dim)
    else:
        width = attention.to_v.out_features * attention.heads // attention.kv_heads
        _check_width(f"{prefix}project_out", width, dim)


def _check_width(flag: str, width: int, dim: int) -> None:
    if width != dim:
        raise FlagError(
            flag,
            f"{flag}: the layer's output has {width} channels, but is added to {dim}: drop the "
            f"flag, or make them dim={dim}",
        )


def fill_attention(attention: Attention, parts: Sequence[Part], keep_logits: bool) -> None:
    """Let one self-attention layer follow its schemes.

    Args:
        attention: the layer.
        parts: of its groups of heads.
        keep_logits: another part of the decoder reads this layer's logits, so that they must be
            materialised.

    Raises:
        FlagError: a scheme that does not go together with the layer's flags.
    """
    parts = _last_heads_turned(attention, parts)
    _check_one_input(attention, parts)
    for part in parts:
        if part.rotation is not None and part.rotation.widens and attention.num_mem_kv > 0:
            raise FlagError(
                "attn_num_mem_kv",
                f"attn_num_mem_kv={attention.num_mem_kv} is not allowed with position 'pope', "
                "whose keys are wider than the learned memories: drop one of them",
            )
        if part.attend is not None:
            _check_gates(attention, part.attend)
            _check_softmax(attention, part)
        _check_sinks(attention, part)
    if any(part.attend is not None and part.attend.gate_keys == "own" for part in parts):
        _add_gate_keys(attention)
    attention.__class__ = PlacedAttention
    attention.max_attend_past = None  # a scheme of the mask slot has it
    SchemeAttend.adopt(attention.attend, parts, keep_logits)
    named: dict[str, list[nn.Module]] = {}
    for index, part in enumerate(parts):
        for module in (part.attend, part.scale):
            if module is not None:
                modules = named.setdefault(module.upstream_name, [nn.Identity() for _ in parts])
                modules[index] = module
    for name, modules in named.items():
        _register(attention, name, modules)


def _register(attention: Attention, name: str, modules: Sequence[nn.Module]) -> None:
    """Give the modules of a layer's groups their name in state dicts.

    Raises:
        FlagError: several of them where x-transformers has place for one.
    """
    owner, _, last = name.rpartition(".")
    place = getattr(attention, owner) if owner else attention
    if len(modules) == 1:
        setattr(place, last, modules[0])
    elif owner:
        groups = nn.Module()
        groups.groups = nn.ModuleList(modules)
        setattr(place, last, groups)
    else:
        ours = [module for module in modules if isinstance(module, AttendModule)]
        if len(ours) > 1:
            raise FlagError(
                "position",
                "two groups of a layer's heads forget, with different schemes: let the heads of "
                "one group forget",
            )
        setattr(place, last, ours[0])


def fill_cross_attention(attention: Attention, part: Part, keep_logits: bool) -> None:
    """Let one cross-attention layer rotate its queries and its context by their places.

    Args:
        attention: the layer.
        part: the rotation of all its heads.
        keep_logits: as for `fill_attention`.
    """
    turning = Part(attention.heads, rotation=part.rotation, rotation_draw=part.rotation_draw)
    if attention.attend.head_learned_sink:
        turning = replace(turning, sink=HeadSinks(attention.heads))
    parts = _last_heads_turned(attention, [turning])
    attention.__class__ = PlacedAttention
    SchemeAttend.adopt(attention.attend, parts, keep_logits)


def _last_heads_turned(attention: Attention, parts: Sequence[Part]) -> list[Part]:
    """``parts`` of which only the last ``rotate_num_heads`` heads of the layer are turned."""
    left, turned = attention.rotate_num_heads, []
    if left == attention.heads:
        return list(parts)
    for part in reversed(parts):
        last, rotation = min(left, part.heads), part.rotation
        left -= last
        if rotation is not None and rotation.widens:
            flag = "rotate_num_heads"
            if attention.to_rotateable_k is not None:
                flag = "attn_latent_rope_subheads"
            raise FlagError(
                flag,
                f"{flag} does not go together with position 'pope', which widens all queries and "
                "keys of a layer: drop one of them",
            )
        if rotation is not None and last < part.heads:
            rotation = LastHeads(rotation, part.heads, last) if last else None
        turned.append(replace(part, rotation=rotation))
    return turned[::-1]


class LastHeads(Rotation):
    """A rotation of the last heads only.

    Args:
        rotation: of all heads; owned, and registered, elsewhere.
        heads: of the group.
        last: how many of them are turned.
    """

    def __init__(self, rotation: Rotation, heads: int, last: int) -> None:
        super().__init__()
        self.rotation = rotation
        self.heads, self.last = heads, last
        self.length_dependent, self.scales = rotation.length_dependent, rotation.scales
        self.remembers, self.each_head = rotation.remembers, rotation.each_head

    def remember(self, x: Tensor) -> Tensor:
        """As that of all heads."""
        return self.rotation.remember(x)

    def places(self, remembered: Tensor, documents: Tensor | None) -> Tensor:
        """As that of all heads."""
        return self.rotation.places(remembered, documents)

    def trace(self, remembered: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """As that of all heads."""
        return self.rotation.trace(remembered, documents)

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `Rotation.rotate`; there are as many key heads as query heads, or, with those that
        gates are made from after them, twice as many."""
        rest = self.heads - self.last
        groups = torch.split(k, self.heads, dim=1)
        last = torch.cat([keys[:, rest:] for keys in groups], dim=1)
        if self.each_head and k_pos.ndim == 4:
            q_pos, k_pos = q_pos[:, rest:], k_pos[:, rest:]
        turned_q, turned_k = self.rotation.rotate(q[:, rest:], last, q_pos, k_pos)
        pieces = zip(groups, torch.split(turned_k, self.last, dim=1), strict=True)
        k = torch.cat([piece for keys, mine in pieces for piece in (keys[:, :rest], mine)], dim=1)
        return torch.cat((q[:, :rest], turned_q), dim=1), k


def _check_one_input(attention: Attention, parts: Sequence[Part]) -> None:
    """Refuse what reads the input of a layer whose queries, keys and values have one each."""
    if not attention.qkv_receive_diff_residuals:
        return
    reading = [
        name
        for part in parts
        for name, module in (
            (part.attend_name, part.attend),
            (part.rotation_name, part.rotation),
        )
        if module is not None and module.remembers
    ]
    reads = {
        "position": bool(reading),
        "attn_num_mem_kv": attention.num_mem_kv > 0,
        "attn_gate_values": attention.to_v_gate is not None,
        "attn_gate_value_heads": attention.to_v_head_gate is not None,
        "attn_hybrid_module": attention.hybrid_module is not None,
        "attn_use_latent_kv": attention.use_latent_kv,
    }
    for flag, on in reads.items():
        if on:
            name = f"position {reading[0]!r}" if flag == "position" else flag
            raise FlagError(
                flag,
                f"{name} does not go together with qkv_receive_diff_residuals, which "
                "integrate_layers implies: there queries, keys and values have no common input; "
                "drop one of them",
            )


def _check_softmax(attention: Attention, part: Part) -> None:
    """Refuse what changes the softmax of a layer some of whose heads have none."""
    if part.attend is None or part.attend.softmax:
        return
    attend = attention.attend
    on = [f"attn_{name}" for name in _SOFTMAX_CHANGED if getattr(attend, name)]
    if getattr(attend.attn_fn, "func", None) is not F.softmax:
        on.append("an attention function that is no softmax")
    if on:
        raise FlagError(
            on[0],
            f"{on[0]} does not go together with position {part.attend_name!r}, whose weights are "
            "no softmax: drop one of them",
        )


def _check_gates(attention: Attention, module: AttendModule) -> None:
    """Refuse gates' keys that the layer cannot give."""
    flag = module.gate_flag
    if module.gate_keys == "values" and attention.to_v.out_features != attention.to_k.out_features:
        raise FlagError(
            flag, f"{flag}=True needs values as wide as the keys: drop attn_value_dim_head"
        )
    taken = {
        "attn_qk_norm_dim_scale": attention.qk_norm_dim_scale,
        "attn_qk_rmsnorm or attn_k_rmsnorm": attention.k_rmsnorm is not None,
        "attn_use_latent_kv": attention.use_latent_kv,
    }
    for other, on in taken.items():
        if module.gate_keys == "own" and on:
            raise FlagError(flag, f"{flag}=True does not go together with {other}: drop one")


def _check_sinks(attention: Attention, part: Part) -> None:
    """Refuse sinks that nothing would act on."""
    if part.sink is None:
        return
    if part.attend is not None and not part.attend.takes_sink:
        raise FlagError(
            "position",
            f"position 'sink' does not go together with {part.attend_name!r}, whose attention is "
            "not a softmax that has place for it: keep one of them",
        )
    if attention.attend.attn_fn is F.sigmoid:
        raise FlagError(
            "attn_sigmoid",
            "attn_sigmoid=True does not go together with position 'sink', which takes a share of "
            "a softmax: drop one of them",
        )
    if attention.attend.cog_signed and part.heads < attention.heads:
        raise FlagError(
            "attn_cog_signed",
            "attn_cog_signed does not go together with position 'sink' in some heads of a layer: "
            "give it to all, or drop one of them",
        )


class _KeysAndGateKeys(nn.Linear):
    """Projects to the keys and, as further heads after them, to the keys of the gates.

    So the gates' keys share the keys' way through x-transformers: split, normalised, rotated,
    cached.
    """

    gate_weight: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat((super().forward(input), F.linear(input, self.gate_weight)), dim=-1)


def _add_gate_keys(attention: Attention) -> None:
    """Give the layer a second projection, for the gates' keys."""
    keys = _as(_KeysAndGateKeys, attention.to_k)
    fresh = nn.Linear(keys.in_features, keys.out_features, bias=False)
    keys.gate_weight = nn.Parameter(fresh.weight.detach())
    attention.to_k = keys
    if attention.num_mem_kv > 0:
        attention.mem_k = nn.Parameter(attention.mem_k.detach().repeat(2, 1, 1))


def holds_logits(layers: Any) -> list[str]:
    """The flags by which layers hold all logits, (b h n n), whatever their scheme."""
    found: dict[str, None] = {}
    for attention in self_attentions(layers):
        attend = attention.attend
        on = {
            "residual_attn": attend.keep_logits,
            "attn_dropout, in training": attend.dropout > 0,
            "attn_use_rel_proj_pos_bias": attention.rel_proj_pos_bias is not None,
            **{f"attn_{name}": bool(getattr(attend, name)) for name in _PLAIN_OFF},
        }
        if not attend.ordinary and not any(getattr(attend, name) for name in _PLAIN_OFF):
            on["an attention function that is no softmax"] = True
        found |= dict.fromkeys(name for name, value in on.items() if value)
    return [*found]


# Attributes of Attend that must be off for its softmax to be the plain one.
_PLAIN_OFF = (
    "pre_softmax_talking_heads",
    "post_softmax_talking_heads",
    "pre_scale_post_talking_heads",
    "selective",
    "cog_signed",
    "l2_distance",
    "add_zero_kv",
    "softclamp_logits",
    "inverted_attention",
)


# Those of them that mean nothing where weights are no softmax.
_SOFTMAX_CHANGED = (
    "selective",
    "cog_signed",
    "add_zero_kv",
    "head_learned_sink",
    "inverted_attention",
)


class PlacedAttention(Attention):  # type: ignore[misc]
    """x-transformers' attention, whose positions are left to `SchemeAttend`."""

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
            call = LayerCall(Places(context_rotary_pos_emb), q_places=rotary_pos_emb)
        else:
            call = LayerCall(rotary_pos_emb, attn_bias)
        if self.orthog_projected_values or self.orthog_projected_values_per_head:
            x = _masked(x, kwargs.get("mask"))
        remembered: list[Tensor | None] = []
        if self.attend.remembers and call is not None:
            remembered = self._remembered(x, kwargs.get("mem"), cache, call.places.padding)
            placing, left = (
                remembered[: len(self.attend.parts)],
                remembered[len(self.attend.parts) :],
            )
            call = replace(call, placing=tuple(placing), remembered=tuple(left))
            if cache is not None:
                cache = copy(cache)
                cache.cached_kv = tuple(cache.cached_kv[:2])
        kwargs[_CALL_AS] = call
        out = super().forward(
            x, *args, cache=cache, return_intermediates=return_intermediates, **kwargs
        )
        if remembered and return_intermediates:
            # beside k and v, (b h j c) as these are
            kept = (t if t.ndim == 4 else t[..., None] for t in remembered if t is not None)
            out[1].cached_kv = (*out[1].cached_kv, *kept)
        return out

    def _remembered(
        self, x: Tensor, mem: Tensor | None, cache: Intermediates | None, padding: Tensor | None
    ) -> list[Tensor | None]:
        """What the tokens of all keys leave behind: for the rotation of each group of heads, then
        for what each has in the attend slot."""
        found: list[Tensor | None] = []
        cached = iter(() if cache is None else cache.cached_kv[2:])
        for module in read_by(self.attend.parts):
            if module is None:
                found.append(None)
                continue
            new = module.remember(x)
            earlier = next(cached, None)
            if earlier is not None:
                new = torch.cat((earlier if new.ndim == 4 else earlier[..., 0], new), dim=2)
            if mem is not None:
                new = torch.cat((module.remember(mem), new), dim=2)
            if padding is not None:
                hidden = padding[:, None]
                new = new.masked_fill(hidden if new.ndim == 3 else hidden[..., None], 0.0)
            found.append(new)
        return found


class FusedIntermediates(Intermediates):  # type: ignore[misc]
    """What fused attention leaves: no logits and no weights, so that to read them is an error.

    x-transformers' own wrappers read them where ``return_attn`` asks for maps.
    """

    # every field keeps the default that it has in the class
    __init__ = object.__init__

    def _never_held(self) -> Any:
        raise FlagError(
            "return_attn",
            "fused attention holds neither logits nor attention maps: call the model within "
            "xcope.modules.logits_kept(model), or wrap the decoder in xcope.TransformerWrapper, "
            "whose return_attn=True keeps them",
        )

    qk_similarities = property(_never_held)
    pre_softmax_attn = property(_never_held)
    post_softmax_attn = property(_never_held)


class SchemeAttend(Attend):  # type: ignore[misc]
    """x-transformers' attention operation under the schemes of its layer.

    Where its softmax is the plain one, `xcope.modules.attention.attend` does the work, and no
    (h i j) tensor exists unless a scheme needs it; where a flag changes the softmax or reads its
    logits, x-transformers' own (h i j) path runs on turned queries and keys, with the bias written
    out.
    """

    parts: tuple[Part, ...]
    keep_logits: bool
    ordinary: bool
    """Whether the softmax is the ordinary one."""
    gate_keys: frozenset[str | None]
    """Where the schemes' gates' keys come from, see `AttendModule`."""
    remembers: bool
    """Whether tokens leave something behind beside their keys and values."""
    _given: list[AttendInputs | None] | None = None
    _given_sink: Tensor | None = None

    @classmethod
    def adopt(cls, attend: Attend, parts: Sequence[Part], keep_logits: bool) -> None:
        """Let ``attend`` be of this class, with its settings and parameters."""
        new = attend
        new.__class__ = cls
        new.parts = tuple(parts)
        new.keep_logits = keep_logits
        off = not any(getattr(attend, name) for name in _PLAIN_OFF)
        new.ordinary = off and getattr(attend.attn_fn, "func", None) is F.softmax
        own = [part.bias for part in parts if part.bias is not None and part.own_bias]
        if own:
            new.bias = own[0] if len(parts) == 1 else nn.ModuleList(own)
        turning = [whole_rotation(part) for part in parts if part.own_rotation]
        kept = [rotation for rotation in turning if rotation is not None]
        if kept:
            new.rotation = kept[0] if len(parts) == 1 else nn.ModuleList(kept)
        modules = [part.attend for part in parts if part.attend is not None]
        new.gate_keys = frozenset(module.gate_keys for module in modules)
        new.remembers = any(module is not None for module in read_by(parts))
        _take_sinks(new)
        if new.head_learned_sink or not all(module.gives_bias for module in modules):
            # where x-transformers' path runs, its flash attention adds nothing to the logits
            new.flash = False

    def sinks(self, device: torch.device) -> list[Tensor | None]:
        """The logits of the sinks of each group of heads, (h); None: it has none."""
        learned, first = self._parameters.get("head_attn_sink"), 0
        found: list[Tensor | None] = []
        for part in self.parts:
            if part.sink is None:
                found.append(None)
            elif learned is None or not part.sink.learned:
                found.append(part.sink(None, device))
            else:
                found.append(part.sink(learned[first : first + part.heads], device))
                first += part.heads
        return found

    @property
    def head_attn_sink(self) -> Any:
        """What x-transformers reads: of all heads, (h), or, outside of a call, what is learned."""
        learned = self._parameters.get("head_attn_sink")
        return learned if self._given_sink is None else self._given_sink

    @property
    def cope(self) -> Any:
        """What x-transformers calls with (q, logits) for what is to be added to them, or None."""
        if self._given is None:
            held = self.__dict__ if "cope" in self.__dict__ else self._modules
            if "cope" not in held:
                raise AttributeError("cope")  # moved, see `check_layers`
            return held["cope"]
        if all(inputs is None for inputs in self._given):
            return None
        return partial(added_by_modules, self.parts, self._given)

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
        flash_pack_seq_kwargs: LayerCall | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Intermediates]:
        """As x-transformers' Attend: (b h i d) in and out, (b 1 i d) keys for one head."""
        call, parts = flash_pack_seq_kwargs, self.parts
        if call is None:  # nobody said where the keys stand: what needs no places acts
            call = LayerCall(Places(torch.arange(0, device=k.device)))
            parts = tuple(Part(part.heads, attend=part.attend) for part in parts)
        if attn_bias is not None:
            call = _with_bias(call, attn_bias)
        gates: dict[str | None, Tensor | None] = {None: None}
        if "values" in self.gate_keys:
            gates["values"] = v
        if "own" in self.gate_keys:
            k, gates["own"] = k.chunk(2, dim=1)
        if keys_of_each_head(parts):
            h = q.shape[1]
            k, v = for_each_query_head(k, h), for_each_query_head(v, h)
            gates = {name: for_each_query_head(t, h) for name, t in gates.items()}
        causal = self.causal if causal is None else causal
        scale = float(q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        plain = self.ordinary and not self.keep_logits and not (self.training and self.dropout > 0)
        plain = plain and call.bias is None and prev_attn is None and attn_delta is None
        if plain and (call.places.given or not (causal or q.shape[2] == 1)):
            # keys in any order, which biases written as vectors do not know
            plain = not any(part.bias is not None for part in parts)
        if plain:
            given: dict[str, Any] = {"scale": scale, "mask": mask, "causal": causal}
            return self._fused(parts, call, q, k, v, gates, given), FusedIntermediates()
        dtype, i, j = v.dtype, q.shape[2], k.shape[2]
        mask = mask_of(parts, call, mask, i, j)
        if call.places.documents is not None:
            mask = within_documents(mask, call.places.documents, j)
        q, k, inputs = self._turned(parts, call, q, k, gates, scale)
        bias = bias_of(parts, call, i, j)
        if call.bias is not None:
            bias = call.bias if bias is None else call.bias + bias
        if bias is not None:
            # rounded once, at the end; under autocast products are still narrow
            wide = torch.promote_types(bias.dtype, dtype)
            q, k, v = q.to(wide), k.to(wide), v.to(wide)
        ordinary = getattr(self, "attn_fn")  # noqa: B009, it has no type
        self._given = inputs
        if not softmax_only(self.parts):
            self.attn_fn = partial(weights_of, self.parts)
        self._given_sink = sink_of_heads(self.parts, self.sinks(q.device))
        try:
            out, inter = super().forward(
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
        finally:
            self._given, self.attn_fn = None, ordinary
            self._given_sink = None
        return out.to(dtype), inter

    def _fused(
        self,
        parts: Sequence[Part],
        call: LayerCall,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        given: dict[str, Any],
    ) -> Tensor:
        """Attention without a (b h i j) tensor, (b h i dv)."""
        h, kv_heads, sinks = q.shape[1], k.shape[1], self.sinks(q.device)
        if q.shape[0] == 0:
            return v.new_zeros(*q.shape[:3], v.shape[-1])
        if len(parts) > 1:
            return attend_groups(parts, call, q, k, v, gates, sinks=sinks, **given)
        if 1 < kv_heads < h:
            # x-transformers' query head a uses key head a mod kv_heads
            given["order"] = torch.arange(h, device=q.device).view(-1, kv_heads).T.flatten()
        remembered, placing = call.left(0)
        told: Any = {"placing": placing, "sink": sinks[0], **given}
        return attend(parts[0], call, q, k, v, gates, remembered, **told)

    def _turned(
        self,
        parts: Sequence[Part],
        call: LayerCall,
        q: Tensor,
        k: Tensor,
        gates: Gates,
        scale: float,
    ) -> tuple[Tensor, Tensor, list[AttendInputs | None]]:
        """q and k for attention with all logits; for each part, what its module gets there."""
        qs, ks = [], []
        inputs: list[AttendInputs | None] = []
        for index, (part, of_part) in enumerate(with_heads(parts)):
            heads = of_part if len(parts) > 1 else slice(None)  # there may be fewer key heads
            gate_k = None if part.attend is None else gate_keys_of(part.attend, k, gates)
            gate_k = None if gate_k is None else gate_k[:, heads]
            left, placing = call.left(index)
            its_q, its_k, gate_k = turned(
                part, call, q[:, heads], k[:, heads], gate_k, placing=placing
            )
            qs.append(its_q)
            ks.append(its_k)
            if part.attend is None or part.attend.gives_bias:
                inputs.append(None)  # nothing, or a bias that is written out
            else:
                gate_k = for_each_query_head(gate_k, part.heads)
                its = AttendInputs(scale=scale, gate_k=gate_k, remembered=left)
                inputs.append(replace(its, cu_seqlens=call.places.documents))
        return torch.cat(qs, dim=1), torch.cat(ks, dim=1), inputs


def _take_sinks(attend: SchemeAttend) -> None:
    """Let the layer hold what its groups' sinks learn, as x-transformers' layers do."""
    sinks = [part.sink for part in attend.parts if part.sink is not None]
    learned = [one.head_attn_sink.detach() for one in sinks if one.head_attn_sink is not None]
    if learned and attend._parameters.get("head_attn_sink") is None:
        _drop(attend, ["head_attn_sink"])
        attend._parameters["head_attn_sink"] = nn.Parameter(torch.cat(learned))
    for one in sinks:
        one.head_attn_sink = None
    attend.head_learned_sink = bool(sinks)


def for_each_query_head(t: Any, h: int) -> Any:
    """(b hk j d) → (b h j d) in x-transformers' order: query head a uses key head a mod hk."""
    return t if t is None or t.shape[1] == h else t.repeat(1, h // t.shape[1], 1, 1)


def _with_bias(call: LayerCall, bias: Tensor) -> LayerCall:
    """The call with one more bias, (… i j); (1) is what `Forgetting.forward` says."""
    if bias.ndim <= 1:
        return call
    return replace(call, bias=bias if call.bias is None else call.bias + bias)


@contextmanager
def logits_kept(layers: nn.Module) -> Iterator[None]:
    """Within, attention of ``layers``, any module, materialises its logits and its weights.

    For callers that want to see them: (b h n n) memory.
    """
    attends = [module for module in layers.modules() if isinstance(module, SchemeAttend)]
    before = [(module.keep_logits, module.flash) for module in attends]
    for module in attends:
        module.keep_logits, module.flash = True, False
    try:
        yield
    finally:
        for module, (kept, flash) in zip(attends, before, strict=True):
            module.keep_logits, module.flash = kept, flash


@dataclass(frozen=True)
class Watched:
    """What one call of a self-attention layer worked with, its logits held.

    Args:
        call: what the layer was told.
        q: queries before they are turned, (b h i d).
        keys: number of keys without x-transformers' key of zeros before the others.
        logits: scale · q·k, (b h i j).
        seen: bool (b h i j).
        attention: the weights, (b h i j), 0 where not seen.
    """

    call: LayerCall
    q: Tensor
    keys: int
    logits: Tensor
    seen: Tensor
    attention: Tensor


@contextmanager
def watched(attention: Attention, note: Callable[[Watched], None]) -> Iterator[None]:
    """Within, beside `logits_kept`, each call of a self-attention layer is told to ``note``."""

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inter, call, bias = output[1], kwargs[_CALL_AS], kwargs.get("attn_bias")
        logits = inter.qk_similarities
        j = logits.shape[-1]
        # a learned sink stands before the keys
        seen = inter.pre_softmax_attn[..., -j:] > torch.finfo(logits.dtype).min / 2
        weights = inter.post_softmax_attn[..., -j:].masked_fill(~seen, 0.0)
        call = call if bias is None else _with_bias(call, bias)
        note(Watched(call, args[0], args[1].shape[2], logits, seen, weights))

    handle = attention.attend.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


__all__ = [
    "CALLS",
    "PLACES_AS",
    "REFUSED",
    "REFUSED_HERE",
    "SETS_ITSELF",
    "SUPPORTED",
    "UPSTREAM_ONLY",
    "AttentionLayers",
    "FusedIntermediates",
    "Meeting",
    "SchemeAttend",
    "SeamError",
    "UpstreamAutoregressiveWrapper",
    "UpstreamDecoder",
    "UpstreamTransformerWrapper",
    "Watched",
    "cache_of",
    "check_cached",
    "check_flags",
    "check_layers",
    "check_packed",
    "check_packed_wrapper",
    "check_widths",
    "check_wrapper",
    "clear_rotation",
    "count_cache",
    "cross_attentions",
    "empty_slots",
    "errors_for_people",
    "fill_attention",
    "fill_cross_attention",
    "fill_input",
    "forget_cache",
    "holds_logits",
    "is_tied",
    "keep_shared",
    "kept_by",
    "left_mask",
    "logits_kept",
    "make_picklable",
    "meetings",
    "needs_all_tokens",
    "only_part",
    "recomputed",
    "replace_modules",
    "restore_layers",
    "restore_wrapper",
    "self_attentions",
    "shifted_within",
    "tie_logits",
    "upstream_decoder_flags",
    "upstream_wrapper_flags",
    "watched",
    "whole_rotation",
]
