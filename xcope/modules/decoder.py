"""`Decoder`: x-transformers' decoder whose positions are a scheme of `xcope.positions`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.modules import seam
from xcope.modules.attention import Part
from xcope.modules.flags import Request, arguments, resolve
from xcope.modules.places import check_context_pos, check_masks, documents_of, places_of
from xcope.positions import Geometry, Plan, Position, Scheme, Slot
from xcope.positions.base import fill_constants
from xcope.positions.plan import Group, Layer
from xcope.positions.tables import Table, TableScheme

log = logging.getLogger(__name__)


class Decoder(seam.UpstreamDecoder):  # type: ignore[misc]
    """A causal transformer stack with one positional scheme, or several knowingly combined.

    Takes every keyword of x-transformers' ``Decoder`` in its own spelling, and ours. These three
    mean the same:

        Decoder(dim=512, depth=6, heads=8, attn_use_cope=True, cope_max_pos=64)
        Decoder(dim=512, depth=6, heads=8, position="cope", cope_max_pos=64)
        Decoder(dim=512, depth=6, heads=8, position={"name": "cope", "max_pos": 64})

    Parameters keep x-transformers' names, so checkpoints load both ways.

    Args:
        position: a scheme's name, a mapping with ``name`` and options, a list of these for several
            at once, or a split by layers or heads, see `xcope.positions.plan`; None leaves the
            choice to the other flags. `xcope.schemes` lists the schemes.
        flags: ``dim``, ``depth``, ``heads``, … and ``<scheme>_<option>``.

    Attributes:
        plan: which layer and which head has which scheme.
        schemes: the chosen schemes, combinations replaced by their parts.
        abs_pos_default: whether `TransformerWrapper` adds learned absolute positions unless told
            otherwise: only if no position at all is asked for, or ``disable_abs_pos_emb=False``.
        meetings: where tokens meet elsewhere than in causal attention.
        packed: whether every call has to say where documents begin (``attn_flash_pack_seq=True``).
        block: tokens of a row in training, for ``max_pos="block"``; None: the ``max_seq_len`` of
            the `TransformerWrapper` around it.

    Raises:
        FlagError: (a ValueError) an unknown flag, two schemes at once, an option of a scheme that
            is not chosen, an impossible size.
        SeamError: an x-transformers whose insides moved.
    """

    plan: Plan
    schemes: tuple[Scheme, ...]
    abs_pos_default: bool
    meetings: tuple[seam.Meeting, ...]
    packed: bool
    block: int | None = None
    _reads_length: bool
    _reads_places: bool
    _needs_all_tokens: bool
    _placed_by_content: str

    def __init__(self, *, position: Position | None = None, **flags: Any) -> None:
        request = resolve(position, flags)
        seam.check_flags(request.upstream)
        _check_sizes(request.upstream)
        geometry = Geometry(
            dim=request.upstream["dim"],
            heads=request.upstream.get("heads", 8),
            dim_head=request.upstream.get("attn_dim_head", 64),
        )
        upstream = _upstream_flags(request)
        with seam.errors_for_people(seam.UpstreamDecoder, upstream, needed=("dim",)):
            super().__init__(**upstream)
        seam.check_layers(self)
        seam.check_widths(self)
        _check_layers(request.plan, len(seam.self_attentions(self)))
        seam.clear_rotation(self)
        builder, layers = Builder(geometry), request.plan.layers
        with random_numbers_of_its_own():
            try:
                parts = [
                    builder.parts(layers[index % len(layers)])
                    for index in range(len(seam.self_attentions(self)))
                ]
            except FlagError as error:
                raise request.plan.explained(error) from error
            self._fill(request.plan, parts, builder.shared)
        self.abs_pos_default = abs_pos_default(request)
        self.packed = bool(request.upstream.get("attn_flash_pack_seq"))
        # x-transformers' wrappers add learned absolute positions unless this says no
        self.disable_abs_pos_emb = not (self.abs_pos_default or self.plan.of(Slot.INPUT))

    @classmethod
    def adopt(
        cls,
        layers: seam.AttentionLayers,
        plan: Plan,
        parts: Sequence[Sequence[Part]],
        shared: Iterable[Any],
    ) -> None:
        """Let layers that x-transformers built, causal ones, be a `Decoder`: in place.

        Args:
            layers: without modules of positions.
            plan: who has which scheme.
            parts: of each self-attention layer.
            shared: the modules that layers share.

        Raises:
            FlagError: a scheme that does not go together with a layer's flags.
            SeamError: an x-transformers whose insides moved.
        """
        seam.check_layers(layers)
        layers.__class__ = cls
        layers._fill(plan, parts, shared)
        layers.abs_pos_default = not layers.disable_abs_pos_emb
        layers.packed = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As x-transformers' ``Decoder.forward``: embeddings (b n dim) in and out.

        Rows that are padded on the left (``seq_start_pos``) are treated as if they stood alone:
        CoPE's table meets the rotated queries, so there the place itself matters, not only the
        distance. Memories before the padding keep their places and are seen.

        Beside a ``cache``, ``x`` is all tokens or only the last ``cache_age``. ``pos``, whole
        numbers (n) or (b n), are the places of all tokens, cached ones too; a bias of the logits
        takes them for each head, (b h n).

        With ``cu_seqlens``, int32 or int64 (m + 1), ``x`` (1 n dim) holds m documents: ascending
        from 0 to n, it says where each begins, equal neighbours being an empty one. Each is
        treated as if it stood alone, whatever the scheme. x-transformers' spelling
        ``flash_pack_seq_kwargs=dict(cu_seqlens_q=…, cu_seqlens_k=…)`` means the same. On a GPU its
        values are not checked: that would wait for the device.

        ``attn_mask``, bool (n j), (h n j) or (b h n j), hides keys; attention stays causal beside
        it. With ``causal=False`` a call reads both ways, or what ``attn_mask`` shows: a prefix
        that sees all of itself, say. It has no cache.

        Raises:
            FlagError: an unknown argument, or one that another makes necessary; an ``attn_mask``
                that hides nothing and shows later tokens, which causal attention does not (on a
                GPU it is not looked at); ``pos`` that is not as long as the tokens; ready-made
                angles; masks that are not bool or do not fit; a cache beside what changes as more
                tokens follow, as dynamic NTK does; ``cu_seqlens`` that do not fit, or beside what
                tells of no documents: places, a cache, memories, cross attention, and flags by
                which tokens meet elsewhere than in attention or schemes follow the length of the
                row, as dynamic NTK does; ``context_pos`` beside places that come from what tokens
                are; no ``cu_seqlens`` where ``attn_flash_pack_seq=True`` promised them.
        """
        kwargs = arguments("Decoder", args, kwargs)
        self._check_beside(kwargs)
        for ready in seam.PLACES_AS:
            if kwargs.get(ready) is not None:
                raise FlagError(ready, f"{ready} is not taken: give the places themselves as pos")
        documents = documents_of(x, kwargs)
        if documents is not None:
            seam.check_packed(self, self.meetings)
        elif self.packed:
            raise FlagError(
                "attn_flash_pack_seq",
                "attn_flash_pack_seq=True, but the call has no cu_seqlens: say where documents "
                "begin, or build the decoder without the flag",
            )
        start, inside = kwargs.get("seq_start_pos"), None
        if start is not None and self.meetings:
            lead = kwargs.get("tokens_before", 0)
            inside = seam.left_mask(self.meetings, x, start, kwargs.get("mask"), lead)
            kwargs["mask"] = inside
        check_masks(x, kwargs)
        if kwargs.get("context_pos") is not None and kwargs.get("context") is not None:
            check_context_pos(kwargs["context_pos"], kwargs["context"])
            if self._placed_by_content:
                raise FlagError(
                    "context_pos",
                    f"context_pos is not read beside position {self._placed_by_content!r}, whose "
                    "places come from what tokens are; its cross attention turns nothing: drop it",
                )
        if kwargs.get("cache") is not None:
            self._check_cache(kwargs)
            if not self._reads_places and kwargs.get("pos") is not None:
                kwargs["pos"] = None  # no scheme here reads them
        mask, kv_mask = kwargs.get("mask"), kwargs.get("self_attn_kv_mask")
        places = places_of(x, self.training, kwargs, documents)
        if places.keys.ndim == 3:
            self._check_places_of_heads(places.keys)
        if self._reads_length:
            places = places if mask is None else places.ending_with(mask)
            places = places if kv_mask is None else places.ending_with(kv_mask)
        kwargs.update(dict.fromkeys(seam.PLACES_AS, places))
        with nullcontext() if inside is None else seam.shifted_within(self, inside):
            return super().forward(x, **kwargs)

    def attn_qk_clip_(self, intermediates: Any, tau: float = 100.0) -> None:
        """As x-transformers': scale the weights of heads whose logits have passed ``tau``.

        Raises:
            FlagError: the intermediates have no logits.
        """
        if any(isinstance(i, seam.FusedIntermediates) for i in intermediates.attn_intermediates):
            raise FlagError(
                "return_attn",
                "the intermediates have no logits, which fused attention never holds: call the "
                "model with return_attn=True beside return_intermediates=True, which keeps them",
            )
        super().attn_qk_clip_(intermediates, tau=tau)

    def _check_beside(self, arguments: dict[str, Any]) -> None:
        """Refuse arguments without what they need, and the other way round."""
        for flag, given, wanted in (
            ("cross_attend=True", "context", self.cross_attend),
            ("use_adaptive_layernorm=True or its like", "condition", self.need_condition),
        ):
            has = arguments.get(given) is not None
            if has and not wanted:
                raise FlagError(given, f"{given} is not read by a Decoder without {flag}: drop it")
            if wanted and not has:
                raise FlagError(given, f"a Decoder with {flag} needs {given}: pass it to the call")

    def _check_cache(self, arguments: dict[str, Any]) -> None:
        seam.check_cached(self.meetings)
        if self._needs_all_tokens:
            raise FlagError(
                "cache",
                "cache does not go together with a scheme by which earlier tokens change as more "
                "follow, as dynamic NTK, LongRoPE, places drawn at random in each call "
                "(random_at_test), or xPos beside learned memories: give all tokens, and no cache",
            )
        if arguments.get("causal") is False:
            raise FlagError(
                "causal",
                "causal=False does not go together with cache: earlier tokens change as more "
                "follow; give all tokens, and no cache (generate: cache_kv=False)",
            )
        if arguments.get("attn_mask") is not None:
            raise FlagError("attn_mask", "attn_mask does not go together with cache: drop one")

    def _check_places_of_heads(self, keys: Tensor) -> None:
        """Only what is added to the logits can differ from head to head."""
        heads = seam.self_attentions(self)[0].heads
        parts = [part for a in seam.self_attentions(self) for part in a.attend.parts]
        turned = any(part.rotation is not None or part.scale is not None for part in parts)
        if turned or any(part.heads != heads for part in parts) or keys.shape[1] != heads:
            raise FlagError(
                "pos",
                f"pos with places for each head, (b {keys.shape[1]} n), needs {heads} heads of one "
                "scheme that is a bias of the logits, as ALiBi: give places (n) or (b n)",
            )

    def fit_tables(self, max_seq_len: int) -> None:
        """Give tables that wait for the length of rows in training their sizes.

        Args:
            max_seq_len: this length where ``block`` does not say it; 0: nobody knows.
        """
        block = self.block or max_seq_len
        waiting = any(isinstance(one, Table) and one.waits for one in self.modules())
        if block < 1 or not waiting:
            return
        with random_numbers_of_its_own():
            for module in self.modules():
                if isinstance(module, Table):
                    module.fit(block)
        self.plan = self.plan.map(
            lambda one: one.fitted(block) if isinstance(one, TableScheme) else one
        )
        self.schemes = self.plan.schemes

    def _fill(self, plan: Plan, parts: Sequence[Sequence[Part]], shared: Iterable[Any]) -> None:
        """Fill the slots of all layers, and note what the forward pass has to know of them."""
        attentions = seam.self_attentions(self)
        for attention, of_layer in zip(attentions, parts, strict=True):
            seam.fill_attention(attention, of_layer, keep_logits=self.residual_attn)
            if attention.attend.dropout > 0 and any(map(_materialised_by_dropout, of_layer)):
                log.warning(
                    "attn_dropout: in training, layers with a bias or CoPE hold their (b h n n) "
                    "attention to drop from it; without attn_dropout they need no such tensor"
                )
        seam.make_picklable(self)
        seam.replace_modules(self)
        for module in shared:
            seam.keep_shared(self, module.upstream_name, module)
        self.plan, self.schemes = plan, plan.schemes
        self.register_load_state_dict_pre_hook(_check_shared_tables)
        self.register_load_state_dict_post_hook(fill_constants)
        rotations = [part.rotation for a in attentions for part in a.attend.parts]
        self._reads_length = any(
            r is not None and (r.length_dependent or r.scales) for r in rotations
        )
        self._placed_by_content = next(
            (
                part.rotation_name
                for a in attentions
                for part in a.attend.parts
                if part.rotation is not None and part.rotation.remembers
            ),
            "",
        )
        biases = [part.bias for a in attentions for part in a.attend.parts]
        placed = [r for r in rotations if r is not None and not r.remembers]
        scales = [part.scale for a in attentions for part in a.attend.parts]
        self._reads_places = bool(placed) or any(one is not None for one in (*biases, *scales))
        at_test = any(getattr(one, "random_at_test", False) for one in plan.schemes)
        self._needs_all_tokens = at_test or any(map(seam.needs_all_tokens, attentions))
        turned = next((part for of_layer in parts for part in of_layer), None)
        alike = {part.rotation for of_layer in parts for part in of_layer}
        if (
            turned
            and turned.rotation
            and len(alike) == 1
            and not (turned.rotation.widens or turned.rotation.remembers)
        ):
            for attention in seam.cross_attentions(self):
                seam.fill_cross_attention(attention, turned, self.cross_residual_attn)
        self.meetings = seam.meetings(self)
        cached = all(meeting.cached for meeting in self.meetings)
        if not cached or self._needs_all_tokens:
            seam.forget_cache(self)


def _check_shared_tables(
    decoder: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    error_msgs: list[str],
) -> None:
    """Before loading: one table takes no several, of which the last would be left."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in decoder.named_modules(remove_duplicate=False):
        if isinstance(module, Table):
            names.setdefault(module, []).append(f"{prefix}{name}.pos_emb")
    for its in names.values():
        given = [state_dict[name] for name in its if name in state_dict]
        if any(not torch.equal(given[0], other) for other in given[1:]):
            error_msgs.append(
                f"the checkpoint has several tables ({its[0]}, …), and this model shares one among "
                "its layers: build it without shared=True"
            )


class Builder:
    """Makes the modules of the schemes: one for all layers where a slot is shared.

    Attributes:
        shared: the modules that layers share, in the order in which they were made.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.shared: list[Any] = []
        self._made: dict[tuple[Scheme, int], Any] = {}

    def parts(self, layer: Layer) -> list[Part]:
        """The groups of a layer's heads; equal ones become one.

        Raises:
            FlagError: heads that cannot be divided among the groups.
        """
        heads = self.geometry.heads
        if heads % len(layer):
            raise FlagError(
                "heads",
                f"heads={heads} cannot be divided into {len(layer)} equal groups, as position asks "
                "for: choose a multiple",
            )
        sizes: dict[Group, int] = {}
        for group in layer:
            sizes[group] = sizes.get(group, 0) + heads // len(layer)
        return [self._part(group, size) for group, size in sizes.items()]

    def _part(self, group: Group, heads: int) -> Part:
        part = Part(heads)
        for one in group:
            if one.slot is Slot.ROTATION:
                draw = getattr(one, "draw", None)
                rotation = self._build(one, heads) if one.per_layer else self._once(one, heads)
                part = replace(
                    part,
                    rotation=rotation,
                    rotation_draw=draw,
                    own_rotation=one.per_layer,
                    rotation_name=one.name,
                )
            elif one.slot is Slot.BIAS:
                draw = getattr(one, "draw", None)
                bias = self._build(one, heads) if one.per_layer else self._once(one, heads)
                part = replace(part, bias=bias, bias_draw=draw, own_bias=one.per_layer)
            elif one.slot is Slot.ATTEND:
                part = replace(part, attend=self._attend(one, heads), attend_name=one.name)
            elif one.slot is Slot.MASK:
                part = replace(part, mask=self._once(one, heads))
            elif one.slot is Slot.SINK:
                part = replace(part, sink=self._build(one, heads))
            elif one.slot is Slot.SCALE:
                part = replace(part, scale=self._build(one, heads))
        return part

    def _once(self, one: Scheme, heads: int) -> Any:
        if (one, heads) not in self._made:
            self._made[one, heads] = self._build(one, heads)
            if one.slot is not Slot.MASK:  # which has no parameters
                self.shared.append(self._made[one, heads])
        return self._made[one, heads]

    def _attend(self, one: Scheme, heads: int) -> Any:
        """Of one layer, unless an option shares it: then each of them has it under its own name."""
        if one.per_layer:
            return self._build(one, heads)
        if (one, heads) not in self._made:
            self._made[one, heads] = self._build(one, heads)
        return self._made[one, heads]

    def _build(self, one: Scheme, heads: int) -> Any:
        return one.build(replace(self.geometry, heads=heads))


def _materialised_by_dropout(part: Part) -> bool:
    return part.bias is not None or part.attend is not None or part.sink is not None


def _check_layers(plan: Plan, attentions: int) -> None:
    if not attentions:
        for one in plan.schemes:
            if one.slot is not Slot.INPUT:
                raise FlagError(
                    "position",
                    f"position {one.name!r} acts in self-attention, which the decoder has none of: "
                    "drop it, or only_cross and custom_layers that leave self-attention out",
                )
        return
    asked = len(plan.layers)
    if plan.exact and asked != attentions:
        raise FlagError(
            "attn_use_cope",
            f"a switch has {asked} entries, one for each layer, but there are {attentions} "
            "self-attention layers",
        )
    if asked > attentions:
        raise FlagError(
            "position",
            f"position has {asked} layers, but there are {attentions} self-attention layers: "
            f"{plan.to_shorten(attentions)}, or raise depth",
        )


@contextmanager
def random_numbers_of_its_own() -> Iterator[None]:
    """Within, a scheme draws its weights; all other weights stay those of the seed.

    So models of one seed that differ only in the scheme begin from the same weights.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def abs_pos_default(request: Request) -> bool:
    """Whether the wrapper adds learned absolute positions unless told otherwise.

    Raises:
        FlagError: flags that contradict each other.
    """
    disable = request.upstream.get("disable_abs_pos_emb")
    named = request.plan.of(Slot.INPUT)
    if disable and named:
        raise FlagError(
            "disable_abs_pos_emb",
            f"disable_abs_pos_emb=True contradicts position={named[0].name!r}: drop one of them",
        )
    return not request.named if disable is None else not disable


def _check_sizes(flags: dict[str, Any]) -> None:
    for flag in ("dim", "depth", "heads", "attn_dim_head"):
        value = flags.get(flag)
        if value is not None:
            _check_size(flag, value)
        elif flag == "dim":
            raise FlagError("dim", "Decoder needs dim")
    heads, kv_heads = flags.get("heads", 8), flags.get("attn_kv_heads")
    of_layers = kv_heads if isinstance(kv_heads, tuple) else (kv_heads,)
    for value in of_layers:
        if value is not None:
            _check_size("attn_kv_heads", value)
            if heads % value:
                raise FlagError(
                    "attn_kv_heads", f"attn_kv_heads={kv_heads} does not divide heads={heads}"
                )
    width = flags.get("attn_value_dim_head") or flags.get("attn_dim_head", 64)
    projected = flags.get("attn_project_out") or flags.get("attn_on_attn")
    if heads == 1 and width != flags["dim"] and not projected:
        raise FlagError(
            "attn_dim_head",
            f"heads=1 with attn_dim_head={width} and dim={flags['dim']} is not allowed: "
            "x-transformers projects the output of a single head only if attn_project_out=True; "
            f"set that, or attn_dim_head={flags['dim']}",
        )


def _check_size(flag: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FlagError(flag, f"{flag}={value!r} is not allowed: a whole number from 1 on")


def _upstream_flags(request: Request) -> dict[str, Any]:
    """The flags for x-transformers, without that of its own packed attention: ours needs none."""
    return {name: flag for name, flag in request.upstream.items() if name != "attn_flash_pack_seq"}
