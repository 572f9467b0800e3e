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
from xcope.ops import windows
from xcope.ops.biased import biased_attention
from xcope.ops.inputs import exporting, few_queries
from xcope.ops.sinks import with_column
from xcope.ops.terms import without_keys
from xcope.ops.transforms import by_definition
from xcope.positions import (
    AttendInputs,
    AttendModule,
    Draw,
    IndexBias,
    KeyLimits,
    QueryScale,
    Rotation,
    Sinks,
)


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
        own_rotation: whether the rotation is of this layer only.
        attend_name: of the scheme in the attend slot.
        rotation_name: of the scheme in the rotation slot.
        mask: which keys a query sees.
        sink: takes a share of attention.
        scale: a factor of the queries, of this layer.
    """

    heads: int
    rotation: Rotation | None = None
    bias: IndexBias | None = None
    attend: AttendModule | None = None
    rotation_draw: Draw | None = None
    bias_draw: Draw | None = None
    own_bias: bool = False
    own_rotation: bool = False
    attend_name: str = ""
    rotation_name: str = ""
    mask: KeyLimits | None = None
    sink: Sinks | None = None
    scale: QueryScale | None = None


@dataclass(frozen=True)
class LayerCall:
    """What one call tells the attention of a layer beside q, k and v.

    Args:
        places: of the keys, without learned memories that stand before them.
        bias: (… i j), further bias that the caller or another part of the layer adds.
        remembered: for each part of the layer, see `AttendInputs`.
        placing: for each part of the layer, see `Rotation.remember`.
        q_places: of the queries where they are not the last keys (cross attention).
        span: what distances stay below, where it is not the number of places.
    """

    places: Places
    bias: Tensor | None = None
    remembered: tuple[Tensor | None, ...] | None = None
    q_places: Places | None = None
    placing: tuple[Tensor | None, ...] | None = None
    draws: dict[Draw, Tensor] = field(default_factory=dict)
    """What was drawn for this layer alone."""
    span: int | None = None

    def of(self, i: int, draw: Draw | None) -> tuple[Tensor, Tensor, int]:
        """Places of i queries and of the keys, and what their distances stay below."""
        keys, queries = self.places, self.q_places
        k_pos, span = keys.drawn(draw, self.draws), self.span or keys.keys.shape[-1]
        if draw is not None and k_pos is not keys.keys:
            span = draw.most
        if queries is not None:
            return queries.drawn(draw, self.draws)[..., -i:], k_pos, span
        return k_pos if i == k_pos.shape[-1] else k_pos[..., -i:], k_pos, span

    def left(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """What tokens left behind for a part of the layer: for its module of the attend slot
        (`AttendModule.remember`), and for the places of its rotation (`Rotation.remember`)."""
        remembered, placing = self.remembered, self.placing
        return (
            None if remembered is None else remembered[index],
            None if placing is None else placing[index],
        )

    def window(self, limits: KeyLimits, i: int, j: int, mask: Tensor | None) -> Tensor:
        """Which of j keys i queries see, see `xcope.ops.windows`; all of those without a place.

        Layers share it.
        """
        known, key = self.places.windows, (limits, i, j)
        if torch.compiler.is_compiling():  # sizes are no keys there
            return _window(self.places, limits, i, j, mask, self.q_places)
        if key not in known:
            known[key] = _window(self.places, limits, i, j, mask, self.q_places)
        found: Tensor = known[key]
        return found

    def gap(self, limits: KeyLimits, window: Tensor, j: int) -> tuple[int, int]:
        """`windows.gap`, once for all layers: on a GPU it waits for the device."""
        known, key = self.places.windows, ("gap", limits, window.shape[-1], j)
        if key not in known:
            known[key] = windows.gap(window, j)
        found: tuple[int, int] = known[key]
        return found

    def without(self, hidden: tuple[int, int], free: int) -> LayerCall:
        """The call without the keys of a `windows.gap`; ``free`` keys come before the places."""
        first, past = (max(0, key - free) for key in hidden)
        keys, whole = self.places.keys, self.places.keys.shape[-1]
        keys = windows.around(keys, (first, past), keys.ndim - 1)
        return replace(self, places=replace(self.places, keys=keys, windows={}), span=whole)


def _window(
    places: Places, limits: KeyLimits, i: int, j: int, mask: Tensor | None, queries: Places | None
) -> Tensor:
    keys = places.keys
    free, slots = j - keys.shape[-1], torch.arange(keys.shape[-1], device=keys.device)
    if places.padding is not None:
        ranks = (~places.padding).long().cumsum(-1) - 1
    elif places.given:
        ranks = slots
    elif places.documents is not None:
        ranks = keys
    else:  # memories before the tokens have their place
        ranks = keys - keys[..., :1].clamp(max=0)
    base = _first_rank(mask, ranks)
    ranks = ranks if base is None else (ranks - base).clamp(min=0)
    if queries is None:
        of_queries, at = ranks[..., -i:], slots[-i:]
    else:
        of_queries = queries.keys[..., -i:]
        at = torch.searchsorted(ranks.contiguous(), of_queries.contiguous())
    first, near = limits(of_queries)
    if places.padding is None:
        first, near = (t + (at - of_queries) for t in (first, near))
    else:  # between what stands before a row and the row itself
        ranks = ranks.contiguous()
        first, near = (torch.searchsorted(ranks, t.contiguous()) for t in (first, near))
    bounds = torch.stack((first, near), dim=-2).clamp(min=0) + free
    return (bounds if bounds.ndim == 3 else bounds[None]).to(torch.int32)


def _first_rank(mask: Tensor | None, ranks: Tensor) -> Tensor | None:
    """The rank of the first key that is seen, (b 1), where rows are masked on the left; else None.

    Where queries differ in what they see, no key is the first.
    """
    if mask is None or ranks.ndim > 1:
        return None
    free = mask.shape[-1] - len(ranks)
    if free < 0 or (mask.ndim == 4 and (mask.shape[1] > 1 or mask.shape[2] > 1)):
        return None
    seen = mask.reshape(len(mask), -1)[:, free:]
    return ranks[seen.to(torch.uint8).argmax(-1, keepdim=True)]


def with_heads(parts: Sequence[Part]) -> Iterator[tuple[Part, slice]]:
    """Each group of heads, and where it lies among the heads of its layer."""
    first = 0
    for part in parts:
        yield part, slice(first, first + part.heads)
        first += part.heads


def read_by(parts: Sequence[Part]) -> list[Rotation | AttendModule | None]:
    """What reads the layer's input: the rotations of all parts, then their modules of the attend
    slot; None where one does not."""
    modules = [*(part.rotation for part in parts), *(part.attend for part in parts)]
    return [module if module is not None and module.remembers else None for module in modules]


def keys_of_each_head(parts: Sequence[Part]) -> bool:
    """Whether query heads that share keys need copies of their own."""
    turned_apart = any(part.rotation is not None and part.rotation.each_head for part in parts)
    return len(parts) > 1 or turned_apart


Gates = Mapping[str | None, Tensor | None]
"""Where gates' keys come from (`AttendModule.gate_keys`) → (b hk j d)."""


def gate_keys_of(module: AttendModule, k: Tensor, gates: Gates) -> Tensor | None:
    """The keys that a module's gates are made from, (b hk j d), or None."""
    return k if module.gate_keys == "keys" else gates[module.gate_keys]


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
    placing: Tensor | None = None,
    sink: Tensor | None = None,
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
        placing: see `turned`.
        sink: (h), logits of the group's sinks.

    Returns:
        (b h i dv), heads in the order of ``q``.
    """
    terms, window, module, i = None, None, part.attend, q.shape[2]
    if module is not None and module.gives_terms:
        terms = None if remembered is None else module.terms(remembered, i)
        module = None
    if part.mask is not None:
        window, j = call.window(part.mask, i, k.shape[2], mask), k.shape[2]
        hidden = (0, 0)
        if _reads_little(part, call, module, q, k, v, *gates.values()):
            hidden = call.gap(part.mask, window, j)
        if hidden != (0, 0):  # not even to be turned
            call = call.without(hidden, j - call.places.keys.shape[-1])
            k, v = windows.around(k, hidden, 2), windows.around(v, hidden, 2)
            gates = {
                n: None if t is None else windows.around(t, hidden, 2) for n, t in gates.items()
            }
            terms = None if terms is None else without_keys(terms, *hidden, among=j)
            if mask is not None and mask.shape[-1] > 1:
                mask = windows.around(mask, hidden, mask.ndim - 1)
            window = windows.moved(window, hidden)
        if module is not None and not module.takes_window:
            mask, window = windows.masked_within(mask, window, k.shape[2]), None
    if part.bias is not None:
        terms = part.bias.terms(*call.of(i, part.bias_draw))
    if order is not None:
        terms = None if terms is None else terms.of_heads(order)
        sink = None if sink is None else sink[order]
        mask = mask[:, order] if mask is not None and mask.shape[1] > 1 else mask
    inputs = AttendInputs(
        scale=scale,
        mask=mask,
        causal=causal,
        bias=terms,
        cu_seqlens=call.places.documents,
        gate_k=None if module is None else gate_keys_of(module, k, gates),
        remembered=remembered,
        heads=order,
        window=window,
        sink=sink,
    )
    if part.rotation is not None and part.rotation.widens and module is None:
        return _attend_wide(part, call, q, k, v, inputs)
    if part.rotation is not None or part.scale is not None:
        q, k, gate_k = turned(part, call, q, k, inputs.gate_k, placing=placing)
        inputs = inputs if gate_k is None else replace(inputs, gate_k=gate_k)
    q = q if order is None else q[:, order]
    if module is None:
        out = biased_attention(
            q,
            k,
            v,
            terms,
            scale=scale,
            mask=mask,
            causal=causal,
            cu_seqlens=inputs.cu_seqlens,
            window=window,
            sink=sink,
        )
    else:
        out = module.attend(q, k, v, inputs)
    return out if order is None else out[:, order.argsort()]


def _reads_little(
    part: Part,
    call: LayerCall,
    module: AttendModule | None,
    q: Tensor,
    *others: Tensor | None,
) -> bool:
    """Whether these are a few queries beside a cache, for which keys may be left out."""
    known = module is None or (module.takes_window and not module.remembers)
    known = known and (part.rotation is None or not part.rotation.remembers)
    drawn = any(map(call.places.draws_by, (part.rotation_draw, part.bias_draw)))
    usual = call.places.documents is None and not drawn and call.q_places is None
    few = few_queries(q, *others) and not torch.compiler.is_compiling()
    return known and usual and few and not by_definition(q, *others)


def turned(
    part: Part,
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    gate_k: Tensor | None,
    heads: Tensor | None = None,
    placing: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """q (b h i d) and k (b hk j d) after the rotation and the queries' scale.

    Keys before the first place stay. What gates are made from is turned as keys are: it meets
    turned queries. ``heads`` (h) int64 are those that ``q`` holds, None: all of the group.
    ``placing`` is what the tokens of all keys left behind for a rotation whose places come from
    them (`Rotation.remember`).
    """
    if part.scale is not None:
        q, k, gate_k = turned(replace(part, scale=None), call, q, k, gate_k, heads, placing)
        return _scaled(part.scale, part.mask, call, q, heads), k, gate_k
    rotation, i = part.rotation, q.shape[2]
    if rotation is None or (rotation.remembers and placing is None):
        return q, k, gate_k
    keys = k if gate_k is None else torch.cat((k, gate_k), dim=1)
    if placing is None:
        q_pos, k_pos, _ = call.of(i, part.rotation_draw)
        placed = k_pos.shape[-1]
    else:
        k_pos = rotation.places(placing, call.places.documents)
        placed = k_pos.shape[2]
        q_pos = k_pos if i == placed else k_pos[:, :, -i:]
    free = k.shape[2] - placed
    q, turned_keys = rotation.rotate(q, keys[:, :, free:], q_pos, k_pos, heads)
    if free:
        turned_keys = torch.cat((keys[:, :, :free], turned_keys), dim=2)
    if gate_k is None:
        return q, turned_keys, None
    k, gate_k = turned_keys.chunk(2, dim=1)
    return q, k, gate_k


def _scaled(
    scale: QueryScale, limits: KeyLimits | None, call: LayerCall, q: Tensor, heads: Tensor | None
) -> Tensor:
    pos, *_ = call.of(q.shape[2], None)
    factor: Tensor = scale(pos, pos + 1 if limits is None else limits.count(pos))
    if heads is not None and factor.shape[-2] > 1:
        factor = factor[..., heads, :]
    return (q * factor[..., None]).to(q.dtype)


def attend_groups(
    parts: Sequence[Part],
    call: LayerCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    *,
    mask: Tensor | None,
    sinks: Sequence[Tensor | None],
    **given: Any,
) -> Tensor:
    """`attend` for each group of heads; k, v and gates are (b h j d), sinks one for each group."""
    outs = []
    for index, (part, heads) in enumerate(with_heads(parts)):
        remembered, placing = call.left(index)
        outs.append(
            attend(
                part,
                call,
                q[:, heads],
                k[:, heads],
                v[:, heads],
                {name: None if t is None else t[:, heads] for name, t in gates.items()},
                remembered,
                placing=placing,
                mask=mask[:, heads] if mask is not None and mask.shape[1] > 1 else mask,
                sink=sinks[index],
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
    terms, mask, sink = inputs.bias, inputs.mask, inputs.sink

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
            window=inputs.window,
            sink=None if sink is None else sink[index],
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


def mask_of(
    parts: Sequence[Part], call: LayerCall, mask: Tensor | None, i: int, j: int
) -> Tensor | None:
    """The mask, (b j) or one that broadcasts to (b h i j), with each group's window in it."""
    if all(part.mask is None for part in parts):
        return mask
    pieces = []
    for part, heads in with_heads(parts):
        its = mask[:, heads] if mask is not None and mask.ndim == 4 and mask.shape[1] > 1 else mask
        if part.mask is not None:
            its = windows.masked_within(its, call.window(part.mask, i, j, mask), j)
        pieces.append(its)
    if len(parts) == 1:
        return pieces[0]
    whole = [
        torch.ones(1, 1, 1, 1, dtype=torch.bool, device=call.places.keys.device)
        if its is None
        else its[:, None, None]
        if its.ndim == 2
        else its
        for its in pieces
    ]
    b = max(len(its) for its in whole)
    return torch.cat(
        [
            its.expand(b, part.heads, i, j)
            for its, (part, _) in zip(whole, with_heads(parts), strict=True)
        ],
        dim=1,
    )


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


def own_sinks(parts: Sequence[Part], device: torch.device) -> list[Tensor | None]:
    """The logits of the sinks of each group of heads, (h), where these hold what they learn."""
    return [
        None if part.sink is None else part.sink(part.sink.head_attn_sink, device) for part in parts
    ]


def sink_of_heads(parts: Sequence[Part], sinks: Sequence[Tensor | None]) -> Tensor | None:
    """The sinks' logits of all heads, (h), −∞ where a group has none; None: none has any."""
    given = [one for one in sinks if one is not None]
    if not given:
        return None
    nothing = torch.full((), -torch.inf, dtype=given[0].dtype, device=given[0].device)
    return torch.cat(
        [
            (nothing if one is None else one).expand(part.heads)
            for one, part in zip(sinks, parts, strict=True)
        ]
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
        remembered, _ = call.left(index)
        if part.attend is None or remembered is None or not part.attend.gives_bias:
            return None
        bias = part.attend.dense(remembered, i)
    return F.pad(bias, (j - bias.shape[-1], 0))


def softmax_only(parts: Sequence[Part]) -> bool:
    """Whether the weights of all heads are a softmax of their logits."""
    return all(part.attend is None or part.attend.softmax for part in parts)


def weights_of(parts: Sequence[Part], logits: Tensor, sink: Tensor | None = None) -> Tensor:
    """Weights (b h i j) of what all schemes have made of the logits, at least float32.

    ``sink`` (h) takes its share of a softmax.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.cat(
        [
            with_column(logits[:, heads], None if sink is None else sink[heads])
            if part.attend is None or part.attend.softmax
            else logits[:, heads].exp()
            for part, heads in with_heads(parts)
        ],
        dim=1,
    )


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
