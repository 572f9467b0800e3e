"""The attention of one group of heads under its schemes: what turns, what is added, who computes.

Here is how schemes act; where x-transformers calls it is `xcope.modules.seam`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xcope.modules.places import Places
from xcope.ops.biased import biased_attention
from xcope.ops.biased.terms import Terms
from xcope.ops.transforms import by_definition
from xcope.positions import IndexBias, Rotation
from xcope.positions.cope import CoPE
from xcope.positions.forgetting import Forgetting


@dataclass(frozen=True)
class Part:
    """What a group of heads has. The modules are owned, and registered, elsewhere.

    Args:
        heads: query heads of the group.
        rotation: turns q and k.
        bias: is added to the logits.
        cope: of this layer.
        forgetting: of this layer.
        rotation_max: the rotation's ``random_max``.
        bias_max: the bias' ``random_max``.
        own_bias: whether the bias is of this layer alone.
    """

    heads: int
    rotation: Rotation | None = None
    bias: IndexBias | None = None
    cope: CoPE | None = None
    forgetting: Forgetting | None = None
    rotation_max: int | None = None
    bias_max: int | None = None
    own_bias: bool = False


@dataclass(frozen=True)
class Call:
    """What attention is told beside q, k and v.

    Args:
        places: of the keys, without learned memories that stand before them.
        bias: (… i j), further bias that the caller or another part of the layer adds.
        log_gates: (b h j), of forgetting attention.
        q_places: of the queries where they are not the last keys (cross attention).
    """

    places: Places
    bias: Tensor | None = None
    log_gates: Tensor | None = None
    q_places: Places | None = None

    def __add__(self, bias: Tensor) -> Call:
        """The call with one more bias, (… i j)."""
        return replace(self, bias=bias if self.bias is None else self.bias + bias)

    def q_and_k(self, i: int, random_max: int | None) -> tuple[Tensor, Tensor]:
        """Places of i queries and of the keys."""
        keys = self.places.of(random_max)
        if self.q_places is not None:
            return self.q_places.of(random_max)[..., -i:], keys
        return keys if i == keys.shape[-1] else keys[..., -i:], keys


def turned(
    part: Part, call: Call, q: Tensor, k: Tensor, heads: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q (b h i d) and k (b hk j d) after the rotation; keys before the first place stay.

    ``heads`` (h) int64 are those that ``q`` holds, None: all of the group.
    """
    if part.rotation is None:
        return q, k
    free = k.shape[-2] - call.places.count
    q_pos, k_pos = call.q_and_k(q.shape[-2], part.rotation_max)
    q, turned_k = part.rotation.rotate(q, k[:, :, free:], q_pos, k_pos, heads)
    return q, torch.cat((k[:, :, :free], turned_k), dim=-2) if free else turned_k


def turned_with_gates(
    part: Part, call: Call, q: Tensor, k: Tensor, gate_k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`turned`, and what the gates are made from turned as keys are: it meets turned queries."""
    if gate_k is None or part.rotation is None:
        return *turned(part, call, q, k), gate_k
    q, both = turned(part, call, q, torch.cat((k, gate_k), dim=1))
    k, gate_k = both.chunk(2, dim=1)
    return q, k, gate_k


def terms_of(part: Part, call: Call, i: int) -> Terms | None:
    """The bias in the form that tiles are computed from."""
    if part.forgetting is not None and call.log_gates is not None:
        return part.forgetting.terms(call.log_gates, i)
    if part.bias is not None:
        return part.bias.terms(*call.q_and_k(i, part.bias_max), call.places.span(part.bias_max))
    return None


def dense_of(part: Part, call: Call, i: int, j: int) -> Tensor | None:
    """The bias written out, (h i j) or (b h i j); 0 at keys before the first place."""
    if part.forgetting is not None and call.log_gates is not None:
        bias = part.forgetting.dense(call.log_gates, i)
    elif part.bias is not None:
        q_pos, k_pos = call.q_and_k(i, part.bias_max)
        if k_pos.ndim == 3:  # places of each head
            rows = part.bias.dense(q_pos.flatten(0, 1), k_pos.flatten(0, 1))
            each = rows.view(*k_pos.shape[:2], *rows.shape[1:])
            bias = each.diagonal(dim1=1, dim2=2).movedim(-1, 1)
        else:
            bias = part.bias.dense(q_pos, k_pos)
    else:
        return None
    return F.pad(bias, (j - bias.shape[-1], 0))


def attend(
    part: Part,
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool,
    gate_k: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Attention of a group of heads in O(n) memory.

    Args:
        part: what the group has.
        call: where its tokens stand.
        q: (b h i d).
        k: (b hk j d).
        v: (b hk j dv).
        scale: of the logits.
        mask: bool, True where a key may be attended; broadcasts to (b h i j).
        causal: query i sees keys up to its own place.
        gate_k: what CoPE's gates are made from, if not ``k``.
        order: (h) int64; query head order[a] uses key head a // (h / hk). None: head a does.

    Returns:
        (b h i dv), heads in the order of ``q``.
    """
    terms = terms_of(part, call, q.shape[-2])
    given: dict[str, Any] = {"scale": scale, "causal": causal}
    given["cu_seqlens"] = call.places.documents
    if order is not None:
        terms = None if terms is None else terms.of_heads(order)
        mask = mask[:, order] if mask is not None and mask.shape[1] > 1 else mask
    if part.rotation is not None and part.rotation.widens:
        heads = torch.arange(q.shape[1], device=q.device) if order is None else order
        out = _attend_wide(part, call, q[:, heads], k, v, heads, terms, mask, **given)
        return out if order is None else out[:, order.argsort()]
    q, k, gate_k = turned_with_gates(part, call, q, k, gate_k)
    q = q if order is None else q[:, order]
    given |= {"mask": mask, "bias": terms}
    if part.cope is not None:
        out = part.cope.attend(q, k, v, gate_k=gate_k, head_order=order, **given)
    else:
        out = biased_attention(q, k, v, **given)
    return out if order is None else out[:, order.argsort()]


KEY_HEADS_AT_ONCE = 2


def _attend_wide(
    part: Part,
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Tensor,
    terms: Terms | None,
    mask: Tensor | None,
    **given: Any,
) -> Tensor:
    """A few key heads at a time, widened anew in the backward.

    Held all at once, wide queries and keys and their gradients need twice the memory of attention.

    Args:
        heads: (h) int64, which heads of the group ``q`` holds.
    """
    groups = q.shape[1] // k.shape[1]

    def some(q: Tensor, k: Tensor, v: Tensor, those: slice) -> Tensor:
        q, k = turned(part, call, q, k, heads[those])
        index = torch.arange(len(heads), device=q.device)[those]
        bias = None if terms is None else terms.of_heads(index)
        its_mask = mask[:, those] if mask is not None and mask.shape[1] > 1 else mask
        return biased_attention(q, k, v, bias, mask=its_mask, **given)

    outs = []
    for first in range(0, k.shape[1], KEY_HEADS_AT_ONCE):
        these = slice(first, min(first + KEY_HEADS_AT_ONCE, k.shape[1]))
        those = slice(these.start * groups, these.stop * groups)
        tensors = (q[:, those], k[:, these], v[:, these])
        if by_definition(*tensors):  # which knows no checkpoints
            outs.append(some(*tensors, those))
        else:  # nothing in it is random
            kept: Any = {"use_reentrant": False, "preserve_rng_state": False}
            outs.append(checkpoint(some, *tensors, those, **kept))
    return torch.cat(outs, dim=1)
