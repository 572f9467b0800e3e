"""Our schemes in models of Hugging Face transformers: `add_cope`, `set_position`.

transformers lets an attention implementation be registered by name; ``"xcope"`` is ours, and each
attention module of a model gets a `LayerPosition`, under the name ``xcope``, that says what its
heads have. The model's config keeps the same as JSON, so that it can be saved and loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from xcope.errors import FlagError, listing
from xcope.integrations.transformers.anatomy import anatomy_of
from xcope.integrations.transformers.layer import (
    NAME,
    NOT_RESTORED,
    LayerPosition,
    arguments,
    before_attention,
    before_model,
)
from xcope.positions import Plan, Position, Scheme, Slot, parse, scheme
from xcope.positions.base import WithConstants
from xcope.positions.rotary import TurningScheme
from xcope.positions.tables import BLOCK, TableScheme

M = TypeVar("M", bound=nn.Module)

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
            f"position has {len(plan.layers)} layers, but {len(names)} are to have it: "
            f"{plan.to_shorten(len(names))}",
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
            own = record["layers"][name] | {"position": None, "keep_rotary": True}
            record["layers"][name] = own
            _fill(base, name, LayerPosition(own), own)
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
    for config in getattr(model, "peft_config", {}).values():
        config.modules_to_save = [name for name in config.modules_to_save or () if name != NAME]
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
    record: dict[str, Any] = getattr(config, NAME, {})
    if not record:
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


# -- the model and its record ---------------------------------------------------------------------


def _language_model(model: nn.Module) -> Any:
    """The model of transformers that is meant, without PEFT around it."""
    outer: Any = model
    inner: Any = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
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
    record: dict[str, Any] | None = getattr(model.config, NAME, None)
    if record is None:
        return anatomy_of(model)
    if not hasattr(model.base_model.get_submodule(next(iter(record["layers"]))), NAME):
        raise FlagError("model", NOT_RESTORED)
    return dict(record)


def _give_own_config(model: nn.Module, config: Any) -> None:
    """Let a model alone hold its config, which others may have been built from."""
    memo: dict[int, Any] = {}
    deepcopy(config, memo)
    for module in model.modules():
        its = module.__dict__.get("config")
        if id(its) in memo:
            module.config = memo[id(its)]


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
        if isinstance(one, TableScheme) and one.max_pos == BLOCK:
            raise FlagError(
                one.flag("max_pos"),
                f"{one.flag('max_pos')}='{BLOCK}' is not taken here: nothing says how long rows "
                "are in training; give a number",
            )
        if getattr(one, "shared", False):
            raise FlagError(
                f"{one.name}_shared",
                f"{one.name}_shared=True is not taken here: each layer of transformers has a "
                "module of its own; leave it out",
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
    if not isinstance(one, TurningScheme) or rotary is None:
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
        model.base_model.register_forward_pre_hook(before_model, with_kwargs=True)
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


def _fill(model: Any, name: str, position: LayerPosition, entry: dict[str, Any]) -> None:
    """Put a layer's schemes into its attention module."""
    module = model.base_model.get_submodule(name)
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
        "arguments": arguments(module),
        "still": entry["rotary"]["still"] if turns else None,
    }
    module.register_forward_pre_hook(before_attention, with_kwargs=True)


def _unhook(module: nn.Module) -> None:
    """Take our hooks from a module."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (before_model, before_attention, _nothing):
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
