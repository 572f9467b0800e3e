"""Models that x-transformers built run on our operators, in place, and back.

    from xcope.integrations.x_transformers import convert, revert

    print(convert(model))    # CoPE, T5, dynamic bias, ALiBi, forgetting, …: in O(n) memory
    revert(model)            # x-transformers' own classes again

What is exchanged are classes, and the modules of positions. Parameters, their names and their
order, hooks, devices and dtypes stay, so that optimisers and checkpoints from before go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from x_transformers import AutoregressiveWrapper, TransformerBlock, TransformerWrapper
from x_transformers import x_transformers as xt

from xcope.errors import FlagError, listing, words_of
from xcope.modules import AutoregressiveWrapper as OurAutoregressiveWrapper
from xcope.modules import Decoder as OurDecoder
from xcope.modules import TransformerWrapper as OurTransformerWrapper
from xcope.modules import seam
from xcope.modules.attention import Part
from xcope.positions import Geometry, Plan, Scheme, combined, schemes, single
from xcope.positions.absolute import Absolute, AbsolutePositions
from xcope.positions.alibi import Alibi, AlibiBias, alibi_slopes
from xcope.positions.cope import ContextualPosition, CoPE
from xcope.positions.decay import Decay, PerRowDecay
from xcope.positions.dynamic import Dynamic, DynamicBias
from xcope.positions.forgetting import Forgetting, ForgettingAttention
from xcope.positions.pope import PolarEmbedding, PoPE
from xcope.positions.rotary import Rotary, RotaryAngles
from xcope.positions.sink import HeadSinks, Sink
from xcope.positions.sinusoidal import Sinusoidal, SinusoidalPositions
from xcope.positions.t5 import T5, T5Bias
from xcope.positions.window import Window, WindowLimits
from xcope.positions.xpos import XPos, XPosAngles

CAUSAL = (xt.Decoder, xt.AttentionLayers, TransformerBlock)
"""Classes of layers whose forward pass is the one that our `xcope.Decoder` builds on."""


@dataclass(frozen=True)
class Report:
    """What became of each stack of layers in a model, by its path there.

    Args:
        done: what was exchanged → its scheme, or its class now.
        left: what stays as it was → why.
        whole: layers that are exchanged, and hold all (b h n n) logits nevertheless → by what.
    """

    done: Mapping[str, str]
    left: Mapping[str, str]
    whole: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = {
            "": self.done,
            "stays as it was: ": self.left,
            "holds (b h n n) logits: ": self.whole,
        }
        return "\n".join(
            f"{path}: {kind}{told}" for kind, of in kinds.items() for path, told in of.items()
        )


def convert(model: nn.Module) -> Report:
    """Let the decoders in ``model`` run on our operators: same weights, same outputs, O(n) memory.

    In place. Exchanged are causal layers of x-transformers' own classes (``Decoder``,
    ``AttentionLayers(causal=True)``) wherever they stand in ``model``, and ``TransformerWrapper`` s
    directly around them; every other module stays, wrappers for generation, too. What cannot be
    exchanged stays as it is, and the report says why: encoders, prefix decoders, cross attention,
    classes of one's own. Learned positions that x-transformers adds beside a scheme stay.

    A model that was compiled by ``torch.compile`` is compiled again when it is called next.

    Args:
        model: layers, or what holds them at any depth; on any device, in any dtype and mode.

    Raises:
        FlagError: nothing in ``model`` could be exchanged; it is as it was.
    """
    done, left, whole = dict[str, str](), dict[str, str](), dict[str, str]()
    with _whole_or_not_at_all(model):
        for path, layers in _named(model, xt.AttentionLayers):
            if type(layers) is OurDecoder:
                done[path] = layers.plan.label()
                continue
            try:
                with _whole_or_not_at_all(layers):
                    _convert_layers(layers)
            except FlagError as error:
                left[path] = str(error)
                continue
            done[path] = layers.plan.label()
            held = seam.holds_logits(layers)
            if held:
                whole[path] = listing(held)
        for path, wrapper in _named(model, TransformerWrapper):
            if type(wrapper) is TransformerWrapper and type(wrapper.attn_layers) is OurDecoder:
                done[path] = _convert_wrapper(wrapper)
        _count_caches(model)
        if not done:
            found = "; ".join(f"{path}: {why}" for path, why in left.items())
            raise FlagError(
                "model",
                f"nothing in {type(model).__name__} can run on our operators: "
                + (found or "it holds no layers of x-transformers"),
            )
    return Report(done, left, whole)


def revert(model: nn.Module) -> Report:
    """Let the decoders in ``model`` be of x-transformers' own classes again, with their weights.

    In place; for models that were converted, and for those built by xcope if x-transformers has
    their scheme.

    Raises:
        FlagError: x-transformers has nothing for what a decoder does; ``model`` is as it was.
    """
    done = dict[str, str]()
    with _whole_or_not_at_all(model):
        for path, wrapper in _named(model, OurTransformerWrapper):
            if isinstance(wrapper.pos_emb, AbsolutePositions | SinusoidalPositions):
                wrapper.pos_emb = _given_back(wrapper.pos_emb, wrapper.attn_layers)
            seam.restore_wrapper(wrapper, OurTransformerWrapper.__annotations__)
            done[path] = "x_transformers.TransformerWrapper"
        for path, layers in _named(model, OurDecoder):
            _revert_layers(layers)
            done[path] = "x_transformers.Decoder"
        for path, wrapper in _named(model, OurAutoregressiveWrapper):
            wrapper.__class__ = AutoregressiveWrapper
            done[path] = "x_transformers.AutoregressiveWrapper"
        _count_caches(model)
    if not done:
        raise FlagError("model", f"{type(model).__name__} holds no decoder of xcope")
    return Report(done, {})


def position_flags(model: TransformerWrapper) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags by which x-transformers builds the positions of ``model``, which it built itself.

    Returns:
        Those of its ``Decoder`` and those of its ``TransformerWrapper``. What a state dict holds,
        as rotary's frequencies, is not among them.

    Raises:
        FlagError: it has no flags for them.
    """
    layers, decoder, wrapper = model.attn_layers, dict[str, Any](), {"use_abs_pos_emb": False}
    slots = [model.pos_emb, layers.rotary_pos_emb, layers.polar_pos_emb, layers.rel_pos]
    for module in slots:
        if type(module) in BY_THEIRS:
            decoder |= BY_THEIRS[type(module)].flags(module)
    if isinstance(model.pos_emb, xt.AbsolutePositionalEmbedding):
        wrapper = {"use_abs_pos_emb": True, "max_seq_len": model.pos_emb.emb.num_embeddings}
    elif isinstance(model.pos_emb, xt.ScaledSinusoidalEmbedding):
        if _base(model.pos_emb.inv_freq, 1.0) != 10000:
            raise FlagError("sinusoidal_theta", "x-transformers has no flag for sinusoidal_theta")
        wrapper = {"use_abs_pos_emb": True, "scaled_sinu_pos_emb": True}
    of_layers = []
    for attention in seam.self_attentions(layers):
        modules = (attention.attend.cope, attention.data_dependent_alibi)
        known = [BY_THEIRS[type(one)].flags(one) for one in modules if type(one) in BY_THEIRS]
        known.append(_beside_flags(attention))
        of_layers.append({flag: value for flags in known for flag, value in flags.items()})
    usual = {"attn_use_cope": False, "attn_cope_max_pos": 16, "attn_max_attend_past": None}
    for flag in dict.fromkeys(flag for flags in of_layers for flag in flags):
        values = tuple(flags.get(flag, usual.get(flag, False)) for flags in of_layers)
        if len({*map(str, values)}) > 1 and flag.startswith("attn_data_dependent_alibi"):
            raise FlagError(
                "position", "x-transformers lets all layers forget or none, and here some do"
            )
        decoder[flag] = values[0] if len({*map(str, values)}) == 1 else values
    if layers.cross_attend:  # which takes them over from self-attention otherwise
        for flag in ("attn_use_cope", "attn_data_dependent_alibi"):
            if flag in decoder:
                decoder[f"cross_{flag}"] = False
        own = {"attn_max_attend_past": None, "attn_head_learned_sink": False}
        own |= _beside_flags(seam.cross_attentions(layers)[0])
        decoder |= {f"cross_{flag}": value for flag, value in own.items() if flag in decoder}
    return decoder, wrapper


def _beside_flags(attention: Any) -> dict[str, Any]:
    """The flags of a layer's window and sinks, where it has them."""
    flags: dict[str, Any] = {}
    if attention.max_attend_past is not None:
        flags["attn_max_attend_past"] = attention.max_attend_past
    if attention.attend.head_learned_sink:
        flags["attn_head_learned_sink"] = True
    return flags


def _named(model: nn.Module, cls: type[nn.Module]) -> list[tuple[str, Any]]:
    found = [(path, one) for path, one in model.named_modules() if isinstance(one, cls)]
    return [(path or type(one).__name__, one) for path, one in found]


@contextmanager
def _whole_or_not_at_all(model: nn.Module) -> Iterator[None]:
    """Within, an error leaves the modules of ``model`` with the classes and attributes they had."""
    before = []
    for module in model.modules():
        attributes = dict(vars(module))
        # the very dictionaries stay: handles of hooks know them
        held = [(value, value.copy()) for value in attributes.values() if isinstance(value, dict)]
        before.append((module, module.__class__, attributes, held))
    try:
        yield
    except BaseException:
        for module, cls, attributes, held in before:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(attributes)
            for value, copy in held:
                value.clear()
                value.update(copy)
        raise


# -- layers and wrappers ---------------------------------------------------------------------------


def _convert_layers(layers: Any) -> None:
    """Raise a `FlagError` if they cannot be."""
    _check_kind(layers)
    geometry, shared = _geometry(layers), []
    named, modules = dict[str, Scheme](), dict[str, Any]()
    for name in ("rotary_pos_emb", "polar_pos_emb", "rel_pos"):
        theirs = getattr(layers, name)
        if theirs is not None:
            named[name], modules[name] = _taken_over(theirs, geometry)
            shared.append(modules[name])
    rotation = next((n for n in ("rotary_pos_emb", "polar_pos_emb") if n in modules), "")
    groups, parts, limits = [], [], dict[int, WindowLimits]()
    for attention in seam.self_attentions(layers):
        chosen = [named[rotation]] if rotation else []
        part = Part(geometry.heads, rotation=modules.get(rotation))
        forgets, cope = attention.data_dependent_alibi, attention.attend.cope
        if "rel_pos" in modules and forgets is None:  # x-transformers adds one or the other
            chosen.append(named["rel_pos"])
            part = replace(part, bias=modules["rel_pos"])
        for theirs in (cope, forgets):
            if theirs is not None:
                scheme, ours = _taken_over(theirs, geometry)
                chosen.append(scheme)
                part = replace(part, attend=ours, attend_name=scheme.name)
        if attention.max_attend_past is not None:
            size = attention.max_attend_past + 1
            chosen.append(Window(size=size))
            part = replace(part, mask=limits.setdefault(size, WindowLimits(size)))
        if attention.attend.head_learned_sink:
            chosen.append(Sink())
            with torch.device("meta"):
                part = replace(part, sink=HeadSinks(geometry.heads))
        groups.append(single(*chosen).layers[0])
        parts.append([part])
    plan = Plan((groups[0],)) if len({*groups}) == 1 else Plan(tuple(groups), exact=True)
    seam.empty_slots(layers)
    OurDecoder.adopt(layers, plan, parts, shared)


def _check_kind(layers: Any) -> None:
    name = type(layers).__name__
    if not layers.causal:
        raise FlagError("causal", f"{name} is not causal, and our operators are for decoders")
    if type(layers) not in CAUSAL:
        raise FlagError(
            "attn_layers", f"{name} is no class of x-transformers, and its own ways are not known"
        )
    attentions = seam.self_attentions(layers)
    if not attentions:
        raise FlagError("attn_layers", f"{name} has no self-attention")
    for attention in attentions:
        for module, cls in ((attention, xt.Attention), (attention.attend, xt.Attend)):
            if type(module) is not cls:
                raise FlagError(
                    "attn_layers",
                    f"{type(module).__name__} stands where x-transformers has {cls.__name__}",
                )
        if attention.attend.flash_pack_seq:
            raise FlagError(
                "attn_flash_pack_seq",
                "attn_flash_pack_seq=True takes another package's operator: build the decoder "
                "with xcope.Decoder, which packs documents by itself",
            )


def _convert_wrapper(wrapper: Any) -> str:
    plan = wrapper.attn_layers.plan
    if type(wrapper.pos_emb) in BY_THEIRS:
        geometry = _geometry(wrapper.attn_layers)
        scheme, wrapper.pos_emb = _taken_over(wrapper.pos_emb, geometry)
        plan = combined([single(scheme), plan])
    OurTransformerWrapper.adopt(wrapper, plan)
    return str(plan.label())


def _revert_layers(layers: Any) -> None:
    """Raise a `FlagError` if they cannot be."""
    attentions = seam.self_attentions(layers)
    parts = [seam.only_part(attention) for attention in attentions]
    past = [_window_given_back(part, layers) for part in parts]
    slots: dict[str, list[Any]] = {
        "rotation": [seam.whole_rotation(part) for part in parts],
        "bias": [part.bias for part in parts if part.attend_name != ForgettingAttention.name],
    }
    for slot, modules in slots.items():
        for module in {*modules} - {None}:
            _kind_of(module, layers)
        if len({*modules}) > 1:
            raise FlagError(
                "position",
                f"layers of x-transformers share their {slot}, and these have several: "
                f"{layers.plan.label()}",
            )
    back = {one: _given_back(one, layers) for of in slots.values() for one in of if one is not None}
    for name, module in [*layers.named_children()]:
        if module in back:
            layers._modules[name] = back[module]
        elif isinstance(module, tuple(BY_OURS)):  # no layer uses it
            layers._modules[name] = _given_back(module, layers)
    for attention, part in zip(attentions, parts, strict=True):
        if part.attend is not None:
            place, _, name = part.attend.upstream_name.rpartition(".")
            owner = attention.get_submodule(place)
            setattr(owner, name, _given_back(part.attend, layers))
    for attention, most in zip(attentions, past, strict=True):
        attention.max_attend_past = most
    seam.restore_layers(layers, OurDecoder.__annotations__)


def _window_given_back(part: Part, layers: Any) -> int | None:
    """The window of a layer as x-transformers counts it; None: it has none.

    Raises:
        FlagError: the layer has a window, a sink or a scale that x-transformers has not.
    """
    window, lacking = part.mask, ""
    plain = isinstance(window, WindowLimits) and not (window.sinks or window.chunked)
    if window is not None and not plain:
        lacking = "a window with first keys, or in chunks"
    elif part.sink is not None and not part.sink.learned:
        lacking = "a sink that is not learned"
    elif part.scale is not None:
        lacking = "a scale of queries by their place"
    if lacking:
        raise FlagError(
            "position", f"x-transformers has nothing like {lacking}: {layers.plan.label()}"
        )
    return window.size - 1 if isinstance(window, WindowLimits) else None


def _geometry(layers: Any) -> Geometry:
    return Geometry(layers.dim, layers.attn_heads, layers.attn_dim_head)


def _count_caches(model: nn.Module) -> None:
    for _, wrapper in _named(model, TransformerWrapper):
        seam.count_cache(wrapper)


# -- modules of positions --------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One of x-transformers' modules of positions, and ours that does the same.

    Args:
        theirs: its class.
        ours: the class of ours.
        scheme: one of theirs → our scheme with its options.
        constants: one of theirs → name → numbers (m) that follow from its options.
        back: one of ours → one of theirs, with its options, its numbers without meaning.
        numbers: one of ours → name → numbers that follow from its options.
        flags: one of theirs → the flags of x-transformers' ``Decoder`` that build one like it.
        narrow: whether x-transformers needs these in the dtype of the weights; if not, they are
            better as they are here, in float32 at least.
    """

    theirs: type[nn.Module]
    ours: type[nn.Module]
    scheme: Callable[[Any], Scheme]
    back: Callable[[Any, Geometry], Any]
    flags: Callable[[Any], dict[str, Any]]
    constants: Callable[[Any], Mapping[str, Tensor]] = lambda theirs: {}
    numbers: Callable[[Any], Mapping[str, Tensor]] = lambda ours: {}
    narrow: bool = False


def _taken_over(theirs: Any, geometry: Geometry) -> tuple[Scheme, Any]:
    """Our scheme and module for one of theirs, with its very parameters."""
    kind = BY_THEIRS.get(type(theirs))
    if kind is None:
        raise FlagError("position", f"{type(theirs).__name__} is no module of x-transformers")
    constants = kind.constants(theirs)
    if any(tensor.is_meta for tensor in constants.values()):
        raise FlagError(
            "position",
            f"{type(theirs).__name__} is on the meta device, without numbers: convert the model "
            "when it has its weights",
        )
    scheme = kind.scheme(theirs)
    if isinstance(scheme, Absolute | Sinusoidal):
        dim = theirs.emb.embedding_dim if isinstance(scheme, Absolute) else 2 * len(theirs.inv_freq)
        geometry = replace(geometry, dim=dim, max_seq_len=getattr(theirs, "max_seq_len", 0))
    with torch.device("meta"):
        ours: Any = scheme.build(geometry)
    _share(theirs, ours)
    if constants:
        ours.take_constants(constants)
    return scheme, ours


def _given_back(ours: Any, layers: Any) -> Any:
    """A module of x-transformers for one of ours, with its very parameters."""
    kind = _kind_of(ours, layers)
    try:
        with torch.device("meta"):
            theirs: Any = kind.back(ours, _geometry(layers))
    except FlagError:
        raise
    except Exception as error:
        raise FlagError(
            "position", f"x-transformers cannot build {kind.theirs.__name__}: {words_of(error)}"
        ) from error
    _share(ours, theirs)
    weights = next(layers.parameters()).dtype
    for name, numbers in kind.numbers(ours).items():
        dtype = weights if kind.narrow else numbers.dtype
        theirs._buffers[name] = numbers.view(theirs._buffers[name].shape).to(dtype)
    return theirs


def _kind_of(ours: Any, layers: Any) -> Kind:
    kind = BY_OURS.get(type(ours))
    if kind is None:
        theirs = [name for name, one in schemes().items() if one.oracle == "x-transformers"]
        raise FlagError(
            "position",
            f"x-transformers has nothing like {type(ours).__name__}, of position "
            f"{layers.plan.label()!r}: it has {listing(theirs)}",
        )
    return kind


def _share(source: nn.Module, target: nn.Module) -> None:
    """Give ``target``, which has no weights, those of ``source``, and its mode."""
    given = dict(source.named_parameters(remove_duplicate=False))
    wanted = dict(target.named_parameters(remove_duplicate=False))
    shapes = [{name: p.shape for name, p in one.items()} for one in (given, wanted)]
    if shapes[0] != shapes[1]:
        raise FlagError(
            "position",
            f"{type(source).__name__} has the parameters {shapes[0]}, not {shapes[1]} as usual",
        )
    for name, parameter in given.items():
        place, _, last = name.rpartition(".")
        target.get_submodule(place)._parameters[last] = parameter
    kept = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        if buffer.is_meta and name in kept:
            target._buffers[name] = kept[name]
    target.train(source.training)


def _rotary(theirs: Any) -> Rotary:
    options = {"dim": 2 * len(theirs.inv_freq), "interpolation_factor": theirs.interpolation_factor}
    base = _base(theirs.inv_freq, 2.0)
    if theirs.scale is None:
        return Rotary(base=base, **options)
    return XPos(base=base, scale_base=float(theirs.scale_base), **options)


def _base(inv_freq: Tensor, step: float) -> float:
    """θ of frequencies θ^(−step·m/dim), m = 0, 1, …, to six digits."""
    exponents = torch.arange(len(inv_freq), dtype=torch.float64) * step
    dim = step * len(inv_freq)
    usual = 10000.0
    given = inv_freq.double().cpu()
    if len(given) < 2 or torch.allclose(given, usual ** (-exponents / dim), rtol=1e-2, atol=0):
        return usual
    return float(f"{float(given[-1]) ** (-dim / float(exponents[-1])):.6g}")


def _alibi(theirs: Any) -> Alibi:
    slopes = theirs.slopes.flatten()
    heads = len(slopes)
    usual = torch.tensor(alibi_slopes(heads), dtype=slopes.dtype, device=slopes.device)
    return Alibi(
        num_heads=None if heads == theirs.total_heads else heads,
        slopes=None if torch.allclose(slopes, usual, rtol=1e-2) else tuple(slopes.tolist()),
    )


def _slopes(theirs: Any) -> dict[str, Tensor]:
    slopes = theirs.slopes.flatten()
    return {"slopes": nn.functional.pad(slopes, (0, theirs.total_heads - len(slopes)))}


def _dynamic(theirs: Any) -> Dynamic:
    *blocks, _ = theirs.mlp
    return Dynamic(log_distance=theirs.log_distance, depth=len(blocks), norm=len(blocks[0]) > 2)


def _t5_back(ours: T5Bias, geometry: Geometry) -> Any:
    if ours.scale != geometry.dim_head**0.5:
        raise FlagError("t5_scaled", "t5_scaled=False is not known to x-transformers")
    buckets, furthest = ours.num_buckets, ours.max_distance
    return xt.RelativePositionBias(ours.scale, True, buckets, furthest, geometry.heads)


def _dynamic_back(ours: Any, geometry: Geometry) -> Any:
    *blocks, last = ours.mlp
    if not isinstance(blocks[0][-1], nn.SiLU):
        flag = "dynamic_activation"
        raise FlagError(flag, f"{flag}='relu' is not known to x-transformers, which has SiLU")
    return xt.DynamicPositionBias(
        last.in_features,
        heads=geometry.heads,
        depth=len(blocks),
        log_distance=ours.log_distance,
        norm=len(blocks[0]) > 2,
    )


def _refuse(options: Mapping[str, bool]) -> None:
    """Raise a `FlagError` for the first option, written as flag=value, that a scheme has."""
    for option, on in options.items():
        if on:
            flag = option.partition("=")[0]
            raise FlagError(flag, f"{option} is not known to x-transformers: train without it")


def _cope_back(ours: CoPE, geometry: Geometry) -> Any:
    options = {
        "cope_per_head=True": ours.pos_emb.ndim == 3,
        "cope_sep_keys=True": ours.sep_keys,
        "cope_val_gates=True": ours.val_gates,
        "cope_scaled=True": ours.scaled,
        f"cope_table_scale={ours.table_scale}": ours.table_scale != 1,
        "cope_biased_gates=False": ours.gate_keys == "keys",
    }
    _refuse(options)
    return xt.CoPE(
        geometry.dim_head,
        geometry.heads,
        ours.max_pos,
        soft_onehot=ours.soft_onehot,
        talking_heads=ours.talking_heads is not None,
        soft_onehot_temp=ours.soft_onehot_temp,
    )


def _decay_back(ours: Decay, geometry: Geometry) -> Any:
    _refuse({"decay_own=True": ours.own, "decay_gate_dim=None": not ours.remembers})
    return xt.PerRowDataDependentAlibi(
        geometry.dim,
        geometry.heads,
        dim_head=ours.width,
        post_log_scale=ours.post_log_scale,
    )


def _rotary_back(ours: RotaryAngles, geometry: Geometry) -> Any:
    if ours.half_split or ours.amplitude != 1:
        what = "rotary's layout 'half_split'" if ours.half_split else "YaRN's amplitude of rotary"
        raise FlagError("position", f"{what} is not known to x-transformers")
    xpos = {"scale_base": ours.scale_base} if isinstance(ours, XPosAngles) else {}
    return xt.RotaryEmbedding(
        2 * len(ours.inv_freq),
        use_xpos=bool(xpos),
        interpolation_factor=ours.interpolation_factor,
        **xpos,
    )


def _absolute_back(ours: AbsolutePositions, geometry: Geometry) -> Any:
    theirs = xt.AbsolutePositionalEmbedding(
        ours.emb.embedding_dim, ours.emb.num_embeddings, ours.l2norm
    )
    if ours.scale != theirs.scale:
        raise FlagError("absolute_scaled", "absolute_scaled=False is not known to x-transformers")
    return theirs


def _alibi_flags(theirs: Any) -> dict[str, Any]:
    slopes = theirs.slopes.flatten().tolist()
    biased = len(slopes) - next((n for n, m in enumerate(reversed(slopes)) if m), len(slopes))
    flags: dict[str, Any] = {"alibi_pos_bias": True}
    if biased and torch.allclose(torch.tensor(slopes[:biased]), torch.tensor(alibi_slopes(biased))):
        return flags if biased == len(slopes) else flags | {"alibi_num_heads": biased}
    return flags | {"rel_pos_kwargs": {"slopes": slopes}}


def _rotary_flags(theirs: Any) -> dict[str, Any]:
    flags: dict[str, Any] = {"rotary_pos_emb": True, "rotary_emb_dim": 2 * len(theirs.inv_freq)}
    if theirs.interpolation_factor != 1:
        flags["rotary_interpolation_factor"] = theirs.interpolation_factor
    if theirs.scale is not None:
        flags |= {"rotary_xpos": True, "rotary_xpos_scale_base": theirs.scale_base}
    return flags


KINDS = (
    Kind(
        xt.RelativePositionBias,
        T5Bias,
        lambda m: T5(num_buckets=m.num_buckets, max_distance=m.max_distance),
        _t5_back,
        lambda m: {
            "rel_pos_bias": True,
            "rel_pos_num_buckets": m.num_buckets,
            "rel_pos_max_distance": m.max_distance,
        },
    ),
    Kind(
        xt.DynamicPositionBias,
        DynamicBias,
        _dynamic,
        _dynamic_back,
        lambda m: {
            "dynamic_pos_bias": True,
            "dynamic_pos_bias_log_distance": m.log_distance,
            "dynamic_pos_bias_mlp_depth": len(m.mlp) - 1,
            "dynamic_pos_bias_norm": len(m.mlp[0]) > 2,
        },
    ),
    Kind(
        xt.AlibiPositionalBias,
        AlibiBias,
        _alibi,
        lambda m, of: xt.AlibiPositionalBias(of.heads),
        _alibi_flags,
        _slopes,
        lambda m: {"slopes": m.slopes},
        narrow=True,
    ),
    Kind(
        xt.CoPE,
        CoPE,
        lambda m: ContextualPosition(
            max_pos=m.max_pos,
            soft_onehot=m.soft_onehot,
            soft_onehot_temp=m.soft_onehot_temp,
            talking_heads=m.talking_heads is not None,
        ),
        _cope_back,
        lambda m: {
            "attn_use_cope": True,
            "attn_cope_max_pos": m.max_pos,
            "attn_cope_soft_onehot_pos": m.soft_onehot,
            "attn_cope_talking_heads": m.talking_heads is not None,
        },
    ),
    Kind(
        xt.DataDependentAlibi,
        Forgetting,
        lambda m: ForgettingAttention(post_log_scale=float(m.post_log_scale)),
        lambda m, of: xt.DataDependentAlibi(of.dim, of.heads, post_log_scale=m.post_log_scale),
        lambda m: {
            "attn_data_dependent_alibi": True,
            "attn_data_dependent_alibi_kwargs": {"post_log_scale": m.post_log_scale},
        },
    ),
    Kind(
        xt.PerRowDataDependentAlibi,
        Decay,
        lambda m: PerRowDecay(gate_dim=round(m.scale**-2), post_log_scale=float(m.post_log_scale)),
        _decay_back,
        lambda m: {
            "attn_data_dependent_alibi": True,
            "attn_data_dependent_alibi_per_row": True,
            "attn_data_dependent_alibi_per_row_dim_head": round(m.scale**-2),
            "attn_data_dependent_alibi_kwargs": {"post_log_scale": m.post_log_scale},
        },
    ),
    *(
        Kind(
            xt.RotaryEmbedding,
            ours,
            _rotary,
            _rotary_back,
            _rotary_flags,
            lambda m: {n: b for n, b in m.named_buffers() if n in ("inv_freq", "scale")},
            lambda m: (
                {"inv_freq": m.frequencies(m.inv_freq)}
                | ({"scale": m.scale} if isinstance(m, XPosAngles) else {})
            ),
        )
        for ours in (RotaryAngles, XPosAngles)
    ),
    Kind(
        xt.PolarEmbedding,
        PolarEmbedding,
        lambda m: PoPE(base=_base(m.inv_freq, 1.0)),
        lambda m, of: xt.PolarEmbedding(of.dim_head, of.heads),
        lambda m: {"polar_pos_emb": True},
        lambda m: {"inv_freq": m.inv_freq},
        lambda m: {"inv_freq": m.inv_freq},
    ),
    Kind(
        xt.AbsolutePositionalEmbedding,
        AbsolutePositions,
        lambda m: Absolute(l2norm=m.l2norm_embed),
        _absolute_back,
        lambda m: {"disable_abs_pos_emb": False},
    ),
    Kind(
        xt.ScaledSinusoidalEmbedding,
        SinusoidalPositions,
        lambda m: Sinusoidal(theta=_base(m.inv_freq, 1.0)),
        lambda m, of: xt.ScaledSinusoidalEmbedding(2 * len(m.inv_freq)),
        lambda m: {"disable_abs_pos_emb": False},
        lambda m: {"inv_freq": m.inv_freq},
        lambda m: {"inv_freq": m.inv_freq},
        narrow=True,
    ),
)
BY_THEIRS = {kind.theirs: kind for kind in KINDS}
BY_OURS = {kind.ours: kind for kind in KINDS}
