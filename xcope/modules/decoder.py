"""`Decoder`: x-transformers' decoder whose positions are a scheme of `xcope.positions`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xcope.errors import FlagError
from xcope.modules import seam
from xcope.modules.flags import Request, resolve
from xcope.positions import Geometry, Position, Scheme, Slot
from xcope.positions.rotary import RotaryAngles

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
        position: a scheme's name, a mapping with ``name`` and options, or a list of these; None
            leaves the choice to the other flags. `xcope.schemes` lists them.
        flags: ``dim``, ``depth``, ``heads``, … and ``<scheme>_<option>``.

    Attributes:
        schemes: the chosen schemes, combinations replaced by their parts.
        abs_pos_default: whether `TransformerWrapper` adds learned absolute positions unless told
            otherwise: only if no position at all is asked for, or ``disable_abs_pos_emb=False``.

    Raises:
        FlagError: (a ValueError) an unknown flag, two schemes at once, an option of a scheme that
            is not chosen, an impossible size.
        SeamError: an x-transformers whose insides moved.
    """

    def __init__(self, *, position: Position | None = None, **flags: Any) -> None:
        request = resolve(position, flags)
        _check_sizes(request.upstream)
        geometry = Geometry(
            dim=request.upstream["dim"],
            heads=request.upstream.get("heads", 8),
            dim_head=request.upstream.get("attn_dim_head", 64),
        )
        try:
            super().__init__(**_upstream_flags(request))
        except AssertionError as error:
            raise seam.refused("Decoder", error) from error
        seam.check_layers(self)
        self.schemes = request.schemes
        self.abs_pos_default = _abs_pos_default(request)
        with random_numbers_of_its_own():
            self._fill_slots(request, geometry)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As x-transformers' ``Decoder.forward``: embeddings (b n dim) in and out.

        Rows that are padded on the left (``seq_start_pos``) are rotated as if they stood alone:
        CoPE's table meets the rotated queries, so there the place itself matters, not only the
        distance.
        """
        start = kwargs.get("seq_start_pos")
        taken = any(kwargs.get(flag) is not None for flag in ("pos", "rotary_pos_emb", "mems"))
        if start is not None and isinstance(self.rotary_pos_emb, RotaryAngles) and not taken:
            n = x.shape[1] + (kwargs.get("seq_pos_offset") or 0)
            pos = torch.arange(n, device=x.device) - start[:, None]
            kwargs["rotary_pos_emb"] = self.rotary_pos_emb(pos.clamp(min=0))
        return super().forward(x, *args, **kwargs)

    def _fill_slots(self, request: Request, geometry: Geometry) -> None:
        for scheme in request.schemes:
            if scheme.slot is Slot.ATTEND:
                self._fill_attend(scheme, request.attend_layers, geometry)
            elif scheme.slot in _SHARED:
                module: Any = scheme.build(geometry)
                _SHARED[scheme.slot](self, module)

    def _fill_attend(
        self, scheme: Scheme, layers: tuple[bool, ...] | None, geometry: Geometry
    ) -> None:
        attentions = seam.self_attentions(self)
        if any(attention.attend.dropout > 0 for attention in attentions):
            log.warning(
                "attn_dropout: in training, layers with CoPE hold their (b h n n) attention to "
                "drop from it; without attn_dropout they need no such tensor"
            )
        if layers is not None and len(layers) != len(attentions):
            raise FlagError(
                "attn_use_cope",
                f"attn_use_cope has {len(layers)} entries, but there are {len(attentions)} "
                "self-attention layers",
            )
        for layer, attention in enumerate(attentions):
            if layers is None or layers[layer]:
                cope: Any = scheme.build(geometry)
                seam.fill_attend(attention, cope, keep_logits=self.residual_attn)


# slots that one module fills for all layers
_SHARED = {Slot.ROTATION: seam.fill_rotation, Slot.BIAS: seam.fill_bias}


@contextmanager
def random_numbers_of_its_own() -> Iterator[None]:
    """Within, a scheme draws its weights; all other weights stay those of the seed.

    So models of one seed that differ in the scheme alone begin from the same weights.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _abs_pos_default(request: Request) -> bool:
    disable = request.upstream.get("disable_abs_pos_emb")
    named = request.of(Slot.INPUT)
    if disable and named is not None:
        raise FlagError(
            "disable_abs_pos_emb",
            f"disable_abs_pos_emb=True contradicts position={named.name!r}: drop one of them",
        )
    return not request.named if disable is None else not disable


def _check_sizes(flags: dict[str, Any]) -> None:
    for flag in ("dim", "depth", "heads", "attn_dim_head", "attn_kv_heads"):
        value = flags.get(flag)
        if value is None:
            if flag == "dim":
                raise FlagError("dim", "Decoder needs dim")
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FlagError(flag, f"{flag}={value!r} is not allowed: a whole number from 1 on")
    heads, kv_heads = flags.get("heads", 8), flags.get("attn_kv_heads")
    if kv_heads is not None and heads % kv_heads:
        raise FlagError("attn_kv_heads", f"attn_kv_heads={kv_heads} does not divide heads={heads}")


def _upstream_flags(request: Request) -> dict[str, Any]:
    """The flags for x-transformers, which is to build no position that is filled here."""
    flags = dict(request.upstream)
    if request.of(Slot.ATTEND) is not None and "attn_flash" in flags:
        # CoPE layers are fused without it; x-transformers would take it as "no logits kept"
        layers = request.attend_layers
        flags["attn_flash"] = False if layers is None else tuple(not on for on in layers)
    if flags.get("attn_flash_pack_seq"):
        flags["rotary_pos_emb"] = request.of(Slot.ROTATION) is not None
    return flags
