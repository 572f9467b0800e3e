"""Our schemes in models of Hugging Face transformers: `add_cope`, `set_position`.

transformers lets an attention implementation be registered by name; ``"xcope"`` is ours, and each
attention module of a model gets a `LayerPosition`, under the name ``xcope``, that says what its
heads have. Nothing of a model's class is known here: which modules attend, with how many heads and
how wide, and what a rotation by nothing looks like, is seen by running the model on five tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.import_utils import is_tracing

from xcope.errors import FlagError, listing
from xcope.integrations.transformers.masks import NOT_CAUSAL, understood, xcope_mask
from xcope.modules.attention import (
    LayerCall,
    Part,
    added_by_modules,
    attend,
    attend_groups,
    bias_of,
    turned,
    with_heads,
)
from xcope.modules.decoder import Builder
from xcope.modules.places import Places, packed_places
from xcope.ops.documents import within_documents
from xcope.ops.inputs import visible
from xcope.positions import AttendInputs, Geometry, Plan, Position, Scheme, Slot, parse, scheme
from xcope.positions.base import WithConstants
from xcope.positions.cope import CoPE
from xcope.positions.rotary import RotaryScheme

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

NAME = "xcope"
"""Of the attention implementation, of the modules in a model, and of what its config keeps."""

REFUSED = {
    "softcap": "caps its logits (attn_logit_softcapping)",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "position_bias": "adds a bias of its own to the logits",
    "attention_bias": "adds a bias of its own to the logits",
    "indices": "attends to keys that an indexer picks",
    "block_indices": "attends to blocks of keys that an indexer picks",
    "head_mask": "masks heads",
}
"""What a class may hand to attention that ours does not compute → what that means."""

ABSOLUTE = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "pos_emb")
"""What transformers' classes call the module whose output is added to the token embedding."""


# -- public ---------------------------------------------------------------------------------------


def add_cope(
    model: M,
    max_pos: int = 64,
    layers: Sequence[int] | None = None,
    keep_rotary: bool = True,
    **options: Any,
) -> M:
    """Add CoPE (arXiv 2405.18719) to a model of transformers, in place.

    The tables begin at zero: with ``keep_rotary`` the model gives what it gave. In windowed layers
    the counts run over the keys of the window.

    Args:
        model: a decoder whose attention goes through transformers' ``AttentionInterface``, or a
            ``PeftModel`` around one.
        max_pos: size of each layer's table; larger counts share its last entry.
        layers: which, from 0; negative ones count from the last. None: all.
        keep_rotary: whether the layers' own rotary positions stay.
        options: of the scheme ``cope``, see `xcope.schemes`.

    Returns:
        ``model``.

    Raises:
        FlagError: as `set_position`.
    """
    position = {"name": "cope", "max_pos": max_pos, **options}
    return set_position(model, position, layers, keep_rotary=keep_rotary, keep_absolute=True)


def set_position(
    model: M,
    position: Position | None,
    layers: Sequence[int] | None = None,
    *,
    keep_rotary: bool = False,
    keep_absolute: bool | None = None,
) -> M:
    """Give layers of a model of transformers another positional scheme, in place.

    Args:
        model: as for `add_cope`.
        position: as for `xcope.Decoder`: ``"alibi"``, ``{"name": "cope", "max_pos": 64}``,
            ``["cope", "alibi"]``, ``{"layers": […]}``, ``{"heads": […]}``, ``"none"``. Rotary
            schemes take ``dim``, ``base`` and ``layout`` from the model unless they are given. Each
            layer has modules of its own. None: the model's own positions, as `remove_position`.
        layers: which, from 0; negative ones count from the last. None: all.
        keep_rotary: whether the layers' own rotary positions stay beside the scheme.
        keep_absolute: whether learned absolute positions stay, which are added before all layers;
            None: only if ``layers`` names some.

    Returns:
        ``model``.

    Raises:
        FlagError: (a ValueError) a scheme that makes no sense here, an unknown layer, a model whose
            attention is not scale · q·k, softmax, v, causal; nothing has changed then.
    """
    if position is None:
        return remove_position(model, layers)
    plan = parse(position)
    _check_plan(plan)
    base = _language_model(model)
    record = _record_of(base)
    names = _chosen(record, layers)
    if len(plan.layers) > len(names):
        raise FlagError(
            "position",
            f"position has {len(plan.layers)} layers, but {len(names)} are to have it: shorten it",
        )
    settings = dict(record["layers"])
    for index, name in enumerate(names):
        groups = plan.layers[index % len(plan.layers)]
        settings[name] = _setting(record["layers"][name], groups, keep_rotary)
    built = {name: LayerPosition(settings[name]) for name in names}  # raises before all changes
    if not hasattr(base.config, NAME):
        _give_own_config(model, base.config)
    if keep_absolute is not None or layers is None:
        record["keep_absolute"] = bool(keep_absolute)
    record["layers"] = settings
    _attach(base, record, built)
    _tell_peft(model)
    return model


def remove_position(model: M, layers: Sequence[int] | None = None) -> M:
    """Take our schemes out again, tables included: the model's own positions act as before.

    Args:
        model: with schemes of ours or without.
        layers: which; None: all, and transformers' own attention comes back.
    """
    base = _language_model(model)
    record = getattr(base.config, NAME, None)
    if record is None:
        return model
    if layers is not None:
        for name in _chosen(record, layers):
            record["layers"][name] = record["layers"][name] | {
                "position": None,
                "keep_rotary": True,
            }
            _fill(base, name, LayerPosition(record["layers"][name]))
        if any(entry["position"] is not None for entry in record["layers"].values()):
            return model
    for name in record["layers"]:
        module = base.base_model.get_submodule(name)
        _unhook(module)
        delattr(module, NAME)
        del module._xcope_hook
        module.config._attn_implementation = record["attn_implementation"]
    for module in (base.base_model, *_absolute(base)):
        _unhook(module)
    del base.base_model._xcope_asked
    for name in (NAME, "attn_implementation"):
        delattr(base.config, name)
    return model


def position_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of our schemes in a model: CoPE's tables, T5's biases.

    To train nothing else::

        model.requires_grad_(False)
        for parameter in position_parameters(model):
            parameter.requires_grad_(True)
    """
    for name, parameter in model.named_parameters():
        if NAME in name.split("."):
            yield parameter


def from_pretrained(
    folder: str, model_class: type[PreTrainedModel] | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Load what ``save_pretrained`` wrote of a model with our schemes, tables included.

    Args:
        folder: or a name on the hub.
        model_class: of transformers; None: the one that was saved.
        kwargs: of transformers' ``from_pretrained``.

    Raises:
        FlagError: the folder holds no schemes of ours, or lacks some of their weights.
    """
    config = kwargs.pop("config", None)
    if config is None:
        hub = ("cache_dir", "revision", "token", "subfolder", "local_files_only", "force_download")
        told = {name: kwargs[name] for name in hub if name in kwargs}
        config = transformers.AutoConfig.from_pretrained(folder, **told)
    record = getattr(config, NAME, None)
    if record is None:
        raise FlagError(
            "folder",
            f"{folder} holds no positions of xcope: load it with transformers' from_pretrained, "
            "and add them with add_cope or set_position",
        )
    if model_class is None:
        model_class = getattr(transformers, config.architectures[0])
    elif hasattr(model_class, "_model_mapping"):
        model_class = model_class._model_mapping[type(config)]

    class Restored(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            config._attn_implementation = record["attn_implementation"]
            super().__init__(config, *args, **kwargs)
            _attach(self, record)

    for name in ("__name__", "__qualname__", "__module__"):  # transformers knows classes by these
        setattr(Restored, name, getattr(model_class, name))
    kwargs.pop("attn_implementation", None)
    told = kwargs.pop("output_loading_info", False)
    model, info = Restored.from_pretrained(
        folder, config=config, output_loading_info=True, **kwargs
    )
    model.__class__ = model_class
    lacking = sorted(key for key in info["missing_keys"] if NAME in key.split("."))
    if lacking:
        raise FlagError(
            "folder",
            f"{folder} lacks the weights of positions that its config.json names: {lacking[0]}"
            + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""),
        )
    for module in model.modules():
        if isinstance(module, WithConstants):  # which transformers leaves without values
            module.refill_constants()
    return (model, info) if told else model


# -- what a model is like --------------------------------------------------------------------------

_watching: ContextVar[list[dict[str, Any]] | None] = ContextVar("watching", default=None)


def _language_model(model: nn.Module) -> Any:
    """The model of transformers that is meant, without PEFT around it."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        what = type(model).__name__
        raise FlagError(
            "model",
            f"{what} is no model of transformers: add_cope and set_position take a "
            "PreTrainedModel, or a PeftModel around one; a decoder of xcope's own takes position=… "
            "when it is built",
        )
    return inner


def _record_of(model: Any) -> dict[str, Any]:
    """What `_attach` needs to know: a copy of what the config keeps, or fresh from the model."""
    record = getattr(model.config, NAME, None)
    first = None if record is None else next(iter(record["layers"]))
    if record is not None and hasattr(model.base_model.get_submodule(first), NAME):
        return dict(record)
    if record is not None:
        raise FlagError("model", NOT_RESTORED)
    return _seen_in(model)


NOT_RESTORED = (
    "the config of this model tells of positions of xcope, which the model does not have: load a "
    "saved one with xcope.integrations.transformers.from_pretrained"
)


def _give_own_config(model: nn.Module, config: Any) -> None:
    """Let a model alone hold its config, which others may have been built from."""
    memo: dict[int, Any] = {}
    deepcopy(config, memo)
    for module in model.modules():
        its = module.__dict__.get("config")
        if id(its) in memo:
            module.config = memo[id(its)]


@contextmanager
def _as_in_evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _seen_in(model: Any) -> dict[str, Any]:
    """Run the model on a few tokens, by its own attention and by ours, and note what is seen.

    Raises:
        FlagError: its attention is not what ours computes.
    """
    kind, config = type(model).__name__, model.config
    own = config.get_text_config()._attn_implementation
    if getattr(config, "is_encoder_decoder", False) or getattr(
        config, "add_cross_attention", False
    ):
        raise FlagError(
            "model",
            f"{kind} has cross attention, where no token stands at the place of another: xcope's "
            "schemes are for decoders alone",
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FlagError(
            "model",
            f"{kind} has weights on the meta device: load them first, positions are added to a "
            "model that runs",
        )
    tokens = torch.arange(1, 6, device=model.device) % config.get_text_config().vocab_size
    configs = {id(config): config, id(config.get_text_config()): config.get_text_config()}
    before = {key: one._attn_implementation for key, one in configs.items()}
    calls: list[dict[str, Any]] = []
    token = _watching.set(calls)
    try:
        with _as_in_evaluation(model):
            for one in configs.values():
                one._attn_implementation = NAME
            ours = _logits(model, tokens)
            for key, one in configs.items():
                one._attn_implementation = before[key]
            with _inputs_noted(calls):
                theirs = _logits(model, tokens)
    except FlagError as error:
        raise FlagError(error.flag, f"{kind}: {error}") from error
    except Exception as error:
        raise FlagError(
            "model",
            f"{kind} does not run on five token ids with an attention implementation of its "
            f"user's: {type(error).__name__}: {error}",
        ) from error
    finally:
        _watching.reset(token)
        for key, one in configs.items():
            one._attn_implementation = before[key]
    if not calls:
        raise FlagError(
            "model",
            f"{kind} does not take its attention from transformers' AttentionInterface, so that "
            "nothing can be set there",
        )
    _check_same(kind, ours, theirs)
    names = {id(module): name for name, module in model.base_model.named_modules()}
    layers = {names[id(call["module"])]: _geometry(model, call) for call in calls}
    return {"attn_implementation": own, "keep_absolute": True, "layers": layers}


def _logits(model: Any, tokens: Tensor) -> Tensor:
    out = model(input_ids=tokens[None], use_cache=False)
    found = out.logits if "logits" in out else out[0]
    return found.float()  # type: ignore[no-any-return]


def _check_same(kind: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise a `FlagError` if the model's attention computes something that ours does not."""
    narrow = theirs.dtype.itemsize < 4
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
    if not error < (0.1 if narrow else 2e-2):
        raise FlagError(
            "model",
            f"{kind} attends in a way of its own: with softmax(scale · q·k) v its outputs differ "
            f"by {error:.1%}, so that no scheme can be added to that",
        )


@contextmanager
def _inputs_noted(calls: list[dict[str, Any]]) -> Iterator[None]:
    """Within, what the modules of ``calls`` are given is noted there."""
    handles = []
    for call in calls:

        def note(module: nn.Module, args: Any, kwargs: Any, call: dict[str, Any] = call) -> None:
            call["given"] = dict(zip(_arguments(module), args, strict=False)) | kwargs

        handles.append(call["module"].register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _arguments(module: nn.Module) -> list[str]:
    """The names of the positional arguments of a module's call."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _geometry(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """What has to be known of an attention module, as JSON can hold it."""
    given = call.get("given", {})
    return {
        "heads": call["q"][1],
        "kv_heads": call["k"][1],
        "dim_head": call["q"][3],
        "dim_value": call["v"][3],
        "dim": model.config.get_text_config().hidden_size,
        "rotary": _rotary(model, call["module"], given.get("position_embeddings")),
        "position": None,
        "keep_rotary": True,
    }


def _rotary(model: Any, module: nn.Module, embeddings: Any) -> dict[str, Any] | None:
    """How a module turns its queries and keys; None: it is not told how to.

    ``still`` holds the numbers that turn by nothing: those of the first place.
    """
    if embeddings is None:
        return None
    tensors = [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)
    still = []
    for tensor in tensors:
        first = tensor.reshape(-1, tensor.shape[-2], tensor.shape[-1])[:, 0]
        if not bool((first == first.flatten()[0]).all()):
            still = None
            break
        number = complex(first.flatten()[0])
        still.append(number.real)
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [parameters, *(p for p in parameters.values() if isinstance(p, dict))]
    bases = {p["rope_theta"] for p in kinds if "rope_theta" in p}
    return {
        "still": still,
        "dim": tensors[0].shape[-1],
        "base": bases.pop() if len(bases) == 1 else None,
        "layout": _layout(module),
    }


def _layout(module: nn.Module) -> str | None:
    """Which channels turn together in a class, as its file's ``rotate_half`` has them."""
    rotate_half = getattr(inspect.getmodule(type(module)), "rotate_half", None)
    if rotate_half is None:
        return None
    order = rotate_half(torch.arange(1.0, 5.0)).tolist()
    known = {(-3.0, -4.0, 1.0, 2.0): "half_split", (-2.0, 1.0, -4.0, 3.0): "interleaved"}
    return known.get(tuple(order))


def _chosen(record: dict[str, Any], layers: Sequence[int] | None) -> list[str]:
    """The names of the attention modules of some layers.

    Raises:
        FlagError: a layer that there is not.
    """
    names = list(record["layers"])
    if layers is None:
        return names
    if isinstance(layers, int | str) or not all(type(layer) is int for layer in layers):
        raise FlagError("layers", f"layers={layers!r} is not allowed: a list of numbers, [0, 2]")
    for layer in layers:
        if not -len(names) <= layer < len(names):
            raise FlagError(
                "layers",
                f"layers={list(layers)}: there is no layer {layer}, the model has {len(names)} "
                f"that attend, 0 to {len(names) - 1}",
            )
    if not layers:
        raise FlagError("layers", "layers=[] names no layer: leave it out for all of them")
    return [names[layer] for layer in sorted({layer % len(names) for layer in layers})]


# -- what schemes make sense -----------------------------------------------------------------------


def _check_plan(plan: Plan) -> None:
    for one in plan.schemes:
        if one.slot is Slot.INPUT:
            raise FlagError(
                "position",
                f"position {one.name!r} is added to the token embedding, which is the model's own: "
                "keep_absolute=True keeps the absolute positions that it has",
            )
        if getattr(one, "random_max", None) is not None:
            raise FlagError(
                f"{one.name}_random_max",
                f"{one.name}_random_max is not taken here: layers of transformers draw no places "
                "together; drop it",
            )
        if getattr(one, "sep_keys", False):
            raise FlagError(
                "cope_sep_keys",
                "cope_sep_keys=True is not taken here: transformers' layers have no projection for "
                "keys of the gates; leave it out, or take cope_val_gates with keep_rotary=False",
            )


def _setting(entry: dict[str, Any], groups: Sequence[Any], keep_rotary: bool) -> dict[str, Any]:
    """The entry of a layer that gets ``groups`` of schemes.

    Raises:
        FlagError: schemes that make no sense beside what the layer has.
    """
    rotary, filled = entry["rotary"], []
    if rotary is not None and rotary["still"] is None and not keep_rotary:
        raise FlagError(
            "keep_rotary",
            "keep_rotary=False is not possible: the rotary positions of this model's class are not "
            "cosines and sines that layers are given; keep_rotary=True keeps them",
        )
    turns = rotary is not None and keep_rotary
    for group in groups:
        full = [_like_the_models(one, rotary) for one in group]
        for one in full:
            if one.slot is Slot.ROTATION and turns:
                raise FlagError(
                    "keep_rotary",
                    f"position {one.name!r} beside keep_rotary=True would turn queries and keys "
                    "twice: choose keep_rotary=False, or leave the scheme out",
                )
            if getattr(one, "val_gates", False):
                _check_val_gates(entry, turns)
        filled.append([{"name": one.name, **_plain(one.given())} for one in full])
    return entry | {"position": filled, "keep_rotary": keep_rotary}


def _check_val_gates(entry: dict[str, Any], turns: bool) -> None:
    """Raise a `FlagError` if queries of a layer do not meet its values as they meet its keys."""
    widths, why = (entry["dim_head"], entry["dim_value"]), ""
    if turns:
        why = "keys are turned by their place and values are not: choose keep_rotary=False"
    elif widths[0] != widths[1]:
        why = f"keys have {widths[0]} channels and values {widths[1]}"
    if why:
        raise FlagError("cope_val_gates", f"cope_val_gates=True is not possible: {why}")


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}


def _like_the_models(one: Scheme, rotary: dict[str, Any] | None) -> Scheme:
    """A rotary scheme with the width, base and layout of the model's own, where it has them.

    Raises:
        FlagError: the model's layout is not known, and none is given.
    """
    if not isinstance(one, RotaryScheme) or rotary is None:
        return one
    given = one.given()
    known = {name: rotary[name] for name in ("dim", "base", "layout") if name not in given}
    lacking = [name for name, value in known.items() if value is None]
    if lacking:
        raise FlagError(
            f"{one.name}_{lacking[0]}",
            f"position {one.name!r}: {listing(lacking)} of the model's rotary positions cannot be "
            f"read off its class: write {{name: {one.name}, {lacking[0]}: …}}",
        )
    return scheme(one.name, given | known)


# -- in the layers ---------------------------------------------------------------------------------


@dataclass
class _Given:
    """What an attention module was given that it does not hand on.

    Args:
        remembered: for each group of heads, of the tokens of this call.
        last: the places of the last tokens, (b 1) or (1 1), where the cache has dropped the first.
        maps: whether the attention weights are wanted.
        cached: the places that the caller gave, beside a cache, (b i).
    """

    remembered: list[Tensor | None] = field(default_factory=list)
    last: Tensor | None = None
    maps: bool = False
    cached: Tensor | None = None


class LayerPosition(nn.Module):
    """What the heads of one attention module of transformers have.

    Args:
        entry: of the layer, as the config keeps it.
    """

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__()
        self.dim_value = entry["dim_value"]
        geometry = Geometry(dim=entry["dim"], heads=entry["heads"], dim_head=entry["dim_head"])
        groups = tuple(
            tuple(
                scheme(one["name"], {n: v for n, v in one.items() if n != "name"}) for one in group
            )
            for group in entry["position"] or [[]]
        )
        self._groups: list[tuple[Part, dict[str, str]]] = []
        parts = Builder(geometry).parts(groups)
        for index, part in enumerate(parts):
            names: dict[str, str] = {}
            for slot in ("rotation", "bias", "attend"):
                module = getattr(part, slot)
                if module is not None:
                    kind = next(
                        one.name
                        for group in groups
                        for one in group
                        if one.slot is not None and one.slot.value == slot
                    )
                    names[slot] = kind if len(parts) == 1 else f"{kind}_{index}"
                    self.add_module(names[slot], module)
            if part.rotation is not None and part.rotation.length_dependent:
                raise FlagError(
                    "position",
                    "position 'rotary_dynamic' turns earlier tokens otherwise as more follow, "
                    "which the cache of transformers does not allow: choose 'rotary_yarn' or "
                    "'rotary_ntk'",
                )
            self._groups.append((replace(part, rotation=None, bias=None, attend=None), names))
        self.needs_places = any(part.rotation or part.bias for part in parts)
        self.remembers = any(part.attend is not None and part.attend.remembers for part in parts)
        self.looked_at = False

    def _look_at_tables(self) -> None:
        """Warn if training leaves CoPE as it is born, which does nothing."""
        self.looked_at = True
        tables = [m.pos_emb for m in self.children() if isinstance(m, CoPE)]
        frozen = torch.is_grad_enabled() and not any(table.requires_grad for table in tables)
        if tables and frozen and not any(bool(table.any()) for table in tables):
            _tell(FROZEN)

    def parts(self) -> list[Part]:
        """The groups of heads with the modules that are registered now."""
        return [
            replace(part, **{slot: getattr(self, name) for slot, name in names.items()})
            for part, names in self._groups
        ]

    def remember(self, x: Tensor) -> list[Tensor | None]:
        """What the tokens x (b n dim) leave behind, for each group of heads."""
        return [
            part.attend.remember(x) if part.attend is not None and part.attend.remembers else None
            for part in self.parts()
        ]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        given: _Given,
        documents: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of all heads.

        Args:
            q: (b h i d).
            k: (b hk j d).
            v: (b hk j dv), wider where the cache holds what tokens left behind.
            mask: a form of `masks`.
            scale: of the logits.
            given: what the layer did not hand on.
            documents: cu_seqlens of packed rows.
            dropout: share of the attention weights that is dropped.

        Returns:
            (b h i dv); (b h i j) weights or None.
        """
        parts, (b, h, i) = self.parts(), q.shape[:3]
        if self.training and not self.looked_at and not torch.compiler.is_compiling():
            self._look_at_tables()
        remembered = given.remembered or [None] * len(parts)
        if v.shape[-1] > self.dim_value:
            v, remembered = _unloaded(v, self.dim_value, remembered)
        if mask is not None and mask.dtype == torch.int32:
            documents, mask = mask[0, 0, 0], None
        if documents is not None and b > 1:
            q, k, v = (t.transpose(0, 1).flatten(1, 2)[None] for t in (q, k, v))
            remembered = [None if t is None else _in_a_row(t) for t in remembered]
        if mask is None and documents is None and given.cached is not None and i == k.shape[2] > 1:
            _check_one_document(given.cached)
        if mask is not None and mask.shape[2] == 1 and mask.shape[3] < k.shape[2]:
            k, v = k[:, :, : mask.shape[3]], v[:, :, : mask.shape[3]]
            remembered = [None if t is None else t[:, :, : mask.shape[3]] for t in remembered]
        j = k.shape[2]
        aligned = mask is None or mask.shape[2] == 1
        call = self._call(mask, i, j, given.last, documents, k.device)
        if self.remembers:
            hidden = None if mask is None else ~mask.flatten(1, 2).any(1)[:, None]
            remembered = [
                t if t is None or hidden is None
                else t.masked_fill(hidden if t.ndim == 3 else hidden[..., None], 0.0)
                for t in remembered
            ]  # fmt: skip
            call = replace(call, remembered=tuple(remembered))
        settings: dict[str, Any] = {
            "scale": scale,
            "mask": mask,
            "causal": aligned or q.shape[2] == j,
        }
        weights = None
        gates: dict[str | None, Tensor | None] = {None: None, "values": v}
        if given.maps or dropout > 0:
            out, weights = _written_out(parts, call, q, k, v, gates, dropout, **settings)
        elif len(parts) == 1:
            out = attend(parts[0], call, q, k, v, gates, remembered[0], **settings)
        else:
            k, v = _for_each_query_head(k, h), _for_each_query_head(v, h)
            out = attend_groups(parts, call, q, k, v, {None: None, "values": v}, **settings)
        if documents is not None and b > 1:
            out = out[0].unflatten(1, (b, i)).transpose(0, 1)
        return out, weights if given.maps else None

    def _call(
        self,
        mask: Tensor | None,
        i: int,
        j: int,
        last: Tensor | None,
        documents: Tensor | None,
        device: torch.device,
    ) -> LayerCall:
        """Where the tokens stand: a row that is padded stands where it would stand alone."""
        if documents is not None:
            return LayerCall(Places(packed_places(documents, j), documents=documents))
        if not self.needs_places:
            return LayerCall(Places(torch.arange(0, device=device)))
        there = torch.ones(1, j, dtype=torch.bool, device=device)
        if mask is not None:
            there = mask.flatten(1, 2).any(1)  # (b j)
        keys = there.long().cumsum(-1) - 1
        if mask is not None and mask.shape[2] == j:  # a document begins where none is seen before
            begins = there[:, 1:] & there[:, :-1] & ~mask[:, 0].diagonal(-1, -2, -1)
            keys = keys - F.pad(torch.where(begins, keys[:, 1:], 0), (1, 0)).cummax(-1).values
        if last is not None:
            keys = keys - keys[:, -1:] + last
        keys, queries = keys.clamp(min=0), None
        if mask is not None and 1 < mask.shape[2] < j:  # a query itself is the last that it sees
            own = j - 1 - mask[:, 0].flip(-1).to(torch.uint8).argmax(-1)
            queries = Places(_one(keys.gather(1, own)))
        return LayerCall(Places(_one(keys)), q_places=queries)


def _scheme(entry: dict[str, Any]) -> Scheme:
    """The inverse of what `_setting` writes."""
    return scheme(entry["name"], {name: v for name, v in entry.items() if name != "name"})


def _for_each_query_head(t: Tensor, h: int) -> Tensor:
    """(b hk j d) → (b h j d): query head a uses key head a // (h / hk)."""
    return t if t.shape[1] == h else t.repeat_interleave(h // t.shape[1], dim=1)


def _check_one_document(position_ids: Tensor) -> None:
    """Raise a `FlagError` if places begin anew within a row: transformers sees one text there."""
    if not is_tracing(position_ids) and bool((position_ids.diff(dim=-1) < 0).any()):
        raise FlagError(
            "position_ids",
            "position_ids begin anew within a row: beside a cache transformers does not keep "
            "packed documents apart: call the model with use_cache=False",
        )


def _one(places: Tensor) -> Tensor:
    """(1 n) → (n), for all rows; (b n) as it is."""
    return places[0] if len(places) == 1 else places


def _in_a_row(t: Tensor) -> Tensor:
    """(b h n …) → (1 h b·n …)."""
    return t.transpose(0, 1).flatten(1, 2)[None]


def _written_out(
    parts: Sequence[Part],
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str | None, Tensor | None],
    dropout: float,
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention with all its weights held, (b h i dv) and (b h i j)."""
    dtype, (h, i), j = v.dtype, q.shape[1:3], k.shape[2]
    wide = torch.promote_types(dtype, torch.float32)
    k, v = _for_each_query_head(k, h), _for_each_query_head(v, h).to(wide)
    if call.places.documents is not None:
        mask = within_documents(mask, call.places.documents, j)
    seen = visible(q, k, mask, causal)
    queries, logits, inputs = [], [], []
    for part, heads in with_heads(parts):
        gate_k = None if part.attend is None else gates[part.attend.gate_keys]
        gate_k = None if gate_k is None else _for_each_query_head(gate_k, h)[:, heads]
        its_q, its_k, gate_k = turned(part, call, q[:, heads], k[:, heads], gate_k)
        queries.append(its_q.to(wide))
        logits.append(scale * its_q.to(wide) @ its_k.to(wide).mT)
        told = part.attend is not None and not part.attend.gives_terms
        inputs.append(AttendInputs(scale=scale, gate_k=gate_k) if told else None)
    s = torch.cat(logits, dim=1)
    bias = bias_of(parts, call, i, j)
    s = (s if bias is None else s + bias).masked_fill(~seen, torch.finfo(wide).min)
    if any(told is not None for told in inputs):
        s = s + added_by_modules(parts, inputs, torch.cat(queries, dim=1), s)
    weights = s.masked_fill(~seen, -torch.inf).softmax(-1)
    weights = weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return (weights @ v).to(dtype), weights.to(dtype)


# -- what transformers calls -----------------------------------------------------------------------


def xcope_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function ``"xcope"``.

    Args:
        module: the attention module that calls.
        query: (b h i d).
        key: (b hk j d).
        value: (b hk j dv).
        attention_mask: of `xcope_mask`, or the caller's.
        scaling: of the logits; None: d ** −0.5.
        dropout: needs the (b h i j) weights.
        kwargs: what else the class hands on.

    Returns:
        (b i h dv); (b h i j) weights where ``output_attentions`` asks for them.

    Raises:
        FlagError: what the class asks for is not computed here.
    """
    for name, what in REFUSED.items():
        if kwargs.get(name) is not None:
            raise FlagError(name, f"{_kind(module)} {what}, {name}=…: xcope's attention does not")
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise FlagError(
            "is_causal", f"{_kind(module)} is not causal (is_causal=False): {NOT_CAUSAL}"
        )
    own = getattr(module, NAME, None)
    if own is None:
        own = _noted(module, query, key, value)
    documents = kwargs.get("cu_seq_lens_q")
    mask = understood(attention_mask, query.shape[2], key.shape[2])
    row = len(query) == 1 and query.shape[2] == key.shape[2]
    if not row or (mask is not None and mask.dtype == torch.int32):
        documents = None  # the mask tells of them, or they are those of another call
    if dropout > 0:
        _tell(DROPS)
    given = module.__dict__.pop("_xcope_given", None) or _Given()
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    out, weights = own(query, key, value, mask, scale, given, documents, dropout)
    return out.transpose(1, 2).contiguous(), weights


def _noted(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> LayerPosition:
    """What a module that has none of our schemes attends with, while `_seen_in` watches."""
    calls, shape = _watching.get(), query.shape
    if calls is None:
        raise FlagError("model", NOT_RESTORED)
    if shape[2] != key.shape[2]:
        raise FlagError("model", f"{_kind(module)} attends to more keys than there are tokens")
    calls.append({"module": module, "q": shape, "k": key.shape, "v": value.shape})
    plain = {"heads": shape[1], "dim_head": shape[3], "dim_value": value.shape[3], "dim": 0}
    return LayerPosition(plain | {"position": None})


def _kind(module: nn.Module) -> str:
    return type(module).__name__


@cache
def _tell(warning: str) -> None:
    """Log a warning, once."""
    log.warning(warning)


torch.compiler.assume_constant_result(_tell)  # logged while compiling, it cuts no graph in two

DROPS = (
    "attention dropout holds the (b h n n) weights to drop from them: set attention_dropout "
    "(attn_pdrop of GPT-2) to 0 to train in O(n) memory"
)
FROZEN = (
    "CoPE's tables are zero and do not learn: nothing will change; let them learn "
    "(position_parameters), with PEFT by LoraConfig(modules_to_save=['xcope'])"
)


AttentionInterface.register(NAME, xcope_attention)
AttentionMaskInterface.register(NAME, xcope_mask)


def _before_model(module: Any, args: Any, kwargs: Any) -> None:
    """Forward pre-hook of the model: some classes do not tell their layers of this."""
    module._xcope_asked["maps"] = bool(kwargs.get("output_attentions"))


def _before_attention(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Forward pre-hook of attention modules: what is not handed on to attention is noted here."""
    names, still = module._xcope_hook["arguments"], module._xcope_hook["still"]
    given = dict(zip(names, args, strict=False)) | kwargs
    changed: dict[str, Any] = {}
    embeddings = given.get("position_embeddings")
    if still is not None and embeddings is not None:
        changed["position_embeddings"] = _still(embeddings, still)
    own, noted = getattr(module, NAME), _Given(maps=module._xcope_hook["asked"]["maps"])
    cached = next((name for name, value in given.items() if isinstance(value, Cache)), None)
    x = given.get("hidden_states", args[0] if args else None)
    if cached is not None:
        cache, layer = given[cached], getattr(module, "layer_idx", 0)
        noted.cached = given.get("position_ids")
        if own.needs_places:
            noted.last = _last_places(cache, layer, x.shape[1], given.get("position_ids"))
    if own.remembers:
        noted.remembered = own.remember(x)
        if cached is not None:
            changed[cached] = _loaded_cache(cache, noted.remembered, layer)
    module.__dict__["_xcope_given"] = noted
    args = tuple(changed.pop(name, value) for name, value in zip(names, args, strict=False))
    return args, {**kwargs, **changed}


def _last_places(cache: Any, layer: int, n: int, position_ids: Tensor | None) -> Tensor | None:
    """Where the last of n tokens stand, if the cache holds a window that has left the first."""
    dropped = cache.get_mask_sizes(n, layer)[1]
    if isinstance(dropped, int) and dropped == 0:
        return None
    if position_ids is not None and position_ids.ndim == 2:
        return position_ids[:, -1:]
    return torch.tensor([[cache.get_query_offset(layer) + n - 1]])


def _still(embeddings: Any, still: Sequence[float]) -> Any:
    """Position embeddings by which nothing turns."""
    if isinstance(embeddings, Tensor):
        return torch.full_like(embeddings, still[0])
    return tuple(torch.full_like(t, s) for t, s in zip(embeddings, still, strict=True))


# -- what tokens leave behind, in transformers' caches ---------------------------------------------


def _loaded_cache(cache: Any, remembered: Sequence[Tensor | None], layer: int) -> Any:
    """A view of a cache whose values carry what tokens left behind, as further channels.

    So it is cropped, reordered, moved and cut to windows with them.
    """
    kind = type(cache.layers[layer]).__name__ if layer < len(cache.layers) else type(cache).__name__
    if "Quantized" in kind:
        raise FlagError(
            "cache_implementation",
            "a quantized cache would round what forgetting attention remembers of each token: "
            "choose the dynamic or the static one",
        )
    view = copy(cache)

    def update(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        load = [_load(t, keys.shape[1], values.dtype) for t in remembered if t is not None]
        return cache.update(keys, torch.cat((values, *load), dim=-1), *args, **kwargs)

    view.update = update
    return view


def _pieces(dtype: torch.dtype) -> int:
    """How many numbers of a dtype hold one of float32."""
    return 3 if dtype.itemsize < 4 else 1


def _load(t: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """(b h n) or (b h n c) → (b hk n m) in the values' dtype."""
    rest = t[..., None] if t.ndim == 3 else t
    rest = F.pad(rest, (0, 0, 0, 0, 0, -rest.shape[1] % kv_heads))
    pieces = []
    for _ in range(_pieces(dtype)):
        pieces.append(rest.to(dtype))
        rest = rest - pieces[-1].to(rest.dtype)
    return torch.cat(pieces, dim=-1).unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(3)


def _unloaded(
    v: Tensor, dim_value: int, given: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor | None]]:
    """The inverse, for all keys: values, and what tokens left behind.

    Args:
        v: (b hk j dv + m).
        dim_value: dv.
        given: of the tokens of this call, whose shapes tell what m is made of.
    """
    first, found, pieces = dim_value, list[Tensor | None](), _pieces(v.dtype)
    for t in given:
        if t is None:
            found.append(None)
            continue
        heads, channels = t.shape[1], t.shape[3] if t.ndim == 4 else 1
        groups = -(-heads // v.shape[1])
        load = v[..., first : first + groups * pieces * channels]
        first += load.shape[-1]
        whole = load.unflatten(-1, (groups, pieces, channels)).to(t.dtype).sum(-2)
        whole = whole.transpose(2, 3).flatten(1, 2)[:, :heads]
        found.append(whole if t.ndim == 4 else whole[..., 0])
    return v[..., :dim_value], found


# -- putting it there ------------------------------------------------------------------------------


def _attach(
    model: Any, record: dict[str, Any], built: dict[str, LayerPosition] | None = None
) -> None:
    """Give every attention module of a model what ``record`` says, and let the config keep it.

    Args:
        model: of transformers.
        record: as the config keeps it.
        built: the layers that change; None: all.
    """
    if not hasattr(model.base_model, "_xcope_asked"):
        model.base_model._xcope_asked = {"maps": False}
        model.base_model.register_forward_pre_hook(_before_model, with_kwargs=True)
    for name, entry in record["layers"].items():
        module = model.base_model.get_submodule(name)
        if built is not None and name in built:
            _fill(model, name, built[name], entry)
        elif built is None or not hasattr(module, NAME):
            _fill(model, name, LayerPosition(entry), entry)
        module.config._attn_implementation = NAME
    for module in _absolute(model):
        _unhook(module)
        if not record["keep_absolute"]:
            module.register_forward_hook(_nothing)
    setattr(model.config, NAME, record)
    # so that transformers by itself refuses to load what it does not understand
    model.config.attn_implementation = NAME


def _fill(
    model: Any, name: str, position: LayerPosition, entry: dict[str, Any] | None = None
) -> None:
    """Put a layer's schemes into its attention module."""
    module = model.base_model.get_submodule(name)
    entry = model.config.xcope["layers"][name] if entry is None else entry
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if weight is None:
        position.to(model.device, model.dtype)
    else:
        position.to(weight.device, weight.dtype)
    position.train(module.training)
    if hasattr(module, NAME):
        _unhook(module)
    setattr(module, NAME, position)
    turns = entry["rotary"] is not None and not entry["keep_rotary"]
    module._xcope_hook = {
        "asked": model.base_model._xcope_asked,
        "arguments": _arguments(module),
        "still": entry["rotary"]["still"] if turns else None,
    }
    module.register_forward_pre_hook(_before_attention, with_kwargs=True)


def _unhook(module: nn.Module) -> None:
    """Take our hooks from a module."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (_before_model, _before_attention, _nothing):
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def _absolute(model: Any) -> list[nn.Module]:
    """The modules whose output is added to the token embedding for its place."""
    return [
        module
        for name, module in model.base_model.named_modules()
        if name.rpartition(".")[2] in ABSOLUTE
    ]


def _nothing(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of absolute positions: none."""
    return torch.zeros_like(output)


def _tell_peft(model: Any) -> None:
    """Let PEFT train and save the modules that were put into a model inside it."""
    if not hasattr(model, "peft_config"):
        return
    from peft.utils.other import set_additional_trainable_modules  # noqa: PLC0415, may be missing

    for adapter, config in model.peft_config.items():
        config.modules_to_save = sorted({*(config.modules_to_save or ()), NAME})
        set_additional_trainable_modules(
            model, config, model.config, adapter, activate_adapter=adapter in model.active_adapters
        )
