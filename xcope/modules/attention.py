"""What a layer's attention does with its schemes: what turns, what is added, who computes.

Where x-transformers calls it is `xcope.modules.seam`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xcope.modules.places import Places
from xcope.ops.biased import biased_attention, dense
from xcope.ops.inputs import exporting
from xcope.ops.transforms import by_definition
from xcope.positions import AttendInputs, AttendModule, Draw, IndexBias, Rotation


@dataclass(frozen=True)
class Part:
    """What a group of a layer's heads has. The modules are owned, and registered, elsewhere.

    Args:
        heads: query heads of the group.
        rotation: turns q and k.
        bias: is added to the logits.
        attend: the attention operation, of this layer.
        rotation_draw: how the rotation draws places at random, if it does.
        bias_draw: how the bias does.
        own_bias: whether the bias is of this layer only.
        attend_name: of the scheme in the attend slot.
    """

    heads: int
    rotation: Rotation | None = None
    bias: IndexBias | None = None
    attend: AttendModule | None = None
    rotation_draw: Draw | None = None
    bias_draw: Draw | None = None
    own_bias: bool = False
    attend_name: str = ""


@dataclass(frozen=True)
class LayerCall:
    """What one call tells the attention of a layer beside q, k and v.

    Args:
        places: of the keys, without learned memories that stand before them.
        bias: (… i j), further bias that the caller or another part of the layer adds.
        remembered: for each part of the layer, see `AttendInputs`.
        q_places: of the queries where they are not the last keys (cross attention).
    """

    places: Places
    bias: Tensor | None = None
    remembered: tuple[Tensor | None, ...] | None = None
    q_places: Places | None = None
    draws: dict[Draw, Tensor] = field(default_factory=dict)
    """What was drawn for this layer alone."""

    def of(self, i: int, draw: Draw | None) -> tuple[Tensor, Tensor, int]:
        """Places of i queries and of the keys, and what their distances stay below."""
        keys, queries = self.places, self.q_places
        k_pos, span = keys.drawn(draw, self.draws), keys.keys.shape[-1]
        if draw is not None and k_pos is not keys.keys:
            span = draw.most
        if queries is not None:
            return queries.drawn(draw, self.draws)[..., -i:], k_pos, span
        return k_pos if i == k_pos.shape[-1] else k_pos[..., -i:], k_pos, span


def with_heads(parts: Sequence[Part]) -> Iterator[tuple[Part, slice]]:
    """Each group of heads, and where it lies among the heads of its layer."""
    first = 0
    for part in parts:
        yield part, slice(first, first + part.heads)
        first += part.heads


Gates = Mapping[str | None, Tensor | None]
"""Where gates' keys come from (`AttendModule.gate_keys`) → (b hk j d)."""


def attend(
    part: Part,
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    remembered: Tensor | None,
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool,
    order: Tensor | None = None,
) -> Tensor:
    """Attention of a group of heads, in O(n) memory unless its scheme needs more.

    Args:
        part: what the group has.
        call: where its tokens stand.
        q: (b h i d).
        k: (b hk j d).
        v: (b hk j dv).
        gates: the keys that gates are made from.
        remembered: see `AttendInputs`.
        scale: of the logits.
        mask: bool, True where a key may be attended; broadcasts to (b h i j).
        causal: query i sees keys up to its own place.
        order: (h) int64; query head order[a] uses key head a // (h / hk). None: head a does.

    Returns:
        (b h i dv), heads in the order of ``q``.
    """
    terms, module = None, part.attend
    if part.bias is not None:
        terms = part.bias.terms(*call.of(q.shape[2], part.bias_draw))
    elif module is not None and module.gives_terms:
        terms = None if remembered is None else module.terms(remembered, q.shape[2])
        module = None
    if order is not None:
        terms = None if terms is None else terms.of_heads(order)
        mask = mask[:, order] if mask is not None and mask.shape[1] > 1 else mask
    inputs = AttendInputs(
        scale=scale,
        mask=mask,
        causal=causal,
        bias=terms,
        cu_seqlens=call.places.documents,
        gate_k=None if module is None else gates[module.gate_keys],
        remembered=remembered,
        heads=order,
    )
    if part.rotation is not None and part.rotation.widens and module is None:
        return _attend_wide(part, call, q, k, v, inputs)
    if part.rotation is not None:
        q, k, gate_k = turned(part, call, q, k, inputs.gate_k)
        inputs = inputs if gate_k is None else replace(inputs, gate_k=gate_k)
    q = q if order is None else q[:, order]
    if module is None:
        out = biased_attention(
            q, k, v, terms, scale=scale, mask=mask, causal=causal, cu_seqlens=inputs.cu_seqlens
        )
    else:
        out = module.attend(q, k, v, inputs)
    return out if order is None else out[:, order.argsort()]


def turned(
    part: Part,
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    gate_k: Tensor | None,
    heads: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """q (b h i d) and k (b hk j d) after the rotation; keys before the first place stay.

    What gates are made from is turned as keys are: it meets turned queries. ``heads`` (h) int64 are
    those that ``q`` holds, None: all of the group.
    """
    if part.rotation is None:
        return q, k, gate_k
    keys = k if gate_k is None else torch.cat((k, gate_k), dim=1)
    q_pos, k_pos, _ = call.of(q.shape[2], part.rotation_draw)
    free = k.shape[2] - k_pos.shape[-1]
    q, turned_keys = part.rotation.rotate(q, keys[:, :, free:], q_pos, k_pos, heads)
    if free:
        turned_keys = torch.cat((keys[:, :, :free], turned_keys), dim=2)
    if gate_k is None:
        return q, turned_keys, None
    k, gate_k = turned_keys.chunk(2, dim=1)
    return q, k, gate_k


def attend_groups(
    parts: Sequence[Part],
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    *,
    mask: Tensor | None,
    **given: Any,
) -> Tensor:
    """`attend` for each group of heads; k, v and gates are (b h j d)."""
    outs = []
    for index, (part, heads) in enumerate(with_heads(parts)):
        outs.append(
            attend(
                part,
                call,
                q[:, heads],
                k[:, heads],
                v[:, heads],
                {name: None if t is None else t[:, heads] for name, t in gates.items()},
                None if call.remembered is None else call.remembered[index],
                mask=mask[:, heads] if mask is not None and mask.shape[1] > 1 else mask,
                **given,
            )
        )
    return torch.cat(outs, dim=1)


KEY_HEADS_AT_ONCE = 2
WIDE_AT_ONCE = 2**21
"""Numbers of wide queries that may be held for the backward: less than weights and activations."""


def _attend_wide(
    part: Part, call: LayerCall, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs
) -> Tensor:
    """A few key heads at a time, widened again in the backward; short rows all at once.

    Held all at once, wide queries and keys and their gradients need twice the memory of attention.
    """
    heads = torch.arange(q.shape[1], device=q.device) if inputs.heads is None else inputs.heads
    q, groups = q[:, heads], q.shape[1] // k.shape[1]
    terms, mask = inputs.bias, inputs.mask

    def some(q: Tensor, k: Tensor, v: Tensor, those: slice) -> Tensor:
        q, k, _ = turned(part, call, q, k, None, heads[those])
        index = torch.arange(len(heads), device=q.device)[those]
        return biased_attention(
            q,
            k,
            v,
            None if terms is None else terms.of_heads(index),
            scale=inputs.scale,
            mask=mask[:, those] if mask is not None and mask.shape[1] > 1 else mask,
            causal=inputs.causal,
            cu_seqlens=inputs.cu_seqlens,
        )

    outs = []
    short = not exporting() and 2 * q.numel() <= WIDE_AT_ONCE
    at_once = k.shape[1] if short else KEY_HEADS_AT_ONCE
    for first in range(0, k.shape[1], at_once):
        these = slice(first, min(first + at_once, k.shape[1]))
        those = slice(these.start * groups, these.stop * groups)
        tensors = (q[:, those], k[:, these], v[:, these])
        if short or by_definition(*tensors):  # which knows no checkpoints
            outs.append(some(*tensors, those))
        else:  # nothing in it is random
            kept: Any = {"use_reentrant": False, "preserve_rng_state": False}
            outs.append(checkpoint(some, *tensors, those, **kept))
    out = torch.cat(outs, dim=1)
    return out if inputs.heads is None else out[:, heads.argsort()]


# -- with all logits held ------------------------------------------------------------------------


def bias_of(parts: Sequence[Part], call: LayerCall, i: int, j: int) -> Tensor | None:
    """What places, and what tokens left behind, add to the logits: (h i j) or (b h i j).

    0 at keys before the first place; None if nothing is added.
    """
    pieces = [_dense(part, call, index, i, j) for index, part in enumerate(parts)]
    given = [piece for piece in pieces if piece is not None]
    if not given or len(parts) == 1:
        return given[0] if given else None
    batch = max(given, key=lambda piece: piece.ndim).shape[:-3]
    zero = given[0].new_zeros(())
    return torch.cat(
        [
            (zero if piece is None else piece).expand(*batch, part.heads, i, j)
            for part, piece in zip(parts, pieces, strict=True)
        ],
        dim=-3,
    )


def _dense(part: Part, call: LayerCall, index: int, i: int, j: int) -> Tensor | None:
    if part.bias is not None:
        q_pos, k_pos, _ = call.of(i, part.bias_draw)
        if k_pos.ndim == 3:  # places of each head
            rows = part.bias.dense(q_pos.flatten(0, 1), k_pos.flatten(0, 1))
            each = rows.view(*k_pos.shape[:2], *rows.shape[1:])
            bias = each.diagonal(dim1=1, dim2=2).movedim(-1, 1)
        else:
            bias = part.bias.dense(q_pos, k_pos)
    else:
        remembered = None if call.remembered is None else call.remembered[index]
        if part.attend is None or remembered is None or not part.attend.gives_terms:
            return None
        bias = dense(part.attend.terms(remembered, i))
    return F.pad(bias, (j - bias.shape[-1], 0))


def added_by_modules(
    parts: Sequence[Part], given: Sequence[AttendInputs | None], q: Tensor, logits: Tensor
) -> Tensor:
    """What schemes of the attend slot add that read the logits, (b h i j).

    Args:
        parts: of the layer.
        given: for each part what its module gets; None: it adds nothing here.
        q: as it meets the keys, (b h i d).
        logits: (b h i j), the dtype's lowest value where not seen.
    """
    j, pieces = logits.shape[-1], []
    seen = ~(logits <= torch.finfo(logits.dtype).min / 2)  # NaN is no mask
    for (part, heads), inputs in zip(with_heads(parts), given, strict=True):
        if part.attend is None or inputs is None:
            pieces.append(torch.zeros_like(logits[:, heads]))
        else:
            its_q = q[:, heads]
            its = inputs.written_out(its_q, j)
            pieces.append(part.attend(its_q, logits[:, heads], seen[:, heads], its))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
