"""The attention of one layer, whose groups of heads may have different schemes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xcope.modules.attend import Call, Part, attend, dense_of, turned_with_gates
from xcope.positions import Rotation
from xcope.positions.cope import CoPE


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

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `Rotation.rotate`; there are as many key heads as query heads, or, with those that
        gates are made from behind them, twice as many."""
        rest = self.heads - self.last
        groups = torch.split(k, self.heads, dim=1)
        last = torch.cat([keys[:, rest:] for keys in groups], dim=1)
        turned_q, turned_k = self.rotation.rotate(q[:, rest:], last, q_pos, k_pos)
        pieces = zip(groups, torch.split(turned_k, self.last, dim=1), strict=True)
        k = torch.cat([piece for keys, mine in pieces for piece in (keys[:, :rest], mine)], dim=1)
        return torch.cat((q[:, :rest], turned_q), dim=1), k


def attend_by_groups(
    parts: Sequence[Part],
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate_k: Tensor | None,
    *,
    mask: Tensor | None,
    **given: Any,
) -> Tensor:
    """`attend` for each group of heads; shapes as there, heads in x-transformers' order."""
    h, kv_heads = q.shape[1], k.shape[1]
    if q.shape[0] == 0:
        return v.new_zeros(*q.shape[:3], v.shape[-1])
    if len(parts) == 1:
        order = None
        if 1 < kv_heads < h:
            # x-transformers' query head a uses key head a mod kv_heads
            order = torch.arange(h, device=q.device).view(h // kv_heads, kv_heads).T.flatten()
        given |= {"gate_k": gate_k, "mask": mask, "order": order}
        return attend(parts[0], call, q, k, v, **given)
    k, v, gate_k = (for_each_query_head(t, h) for t in (k, v, gate_k))
    outs = []
    for part, heads in _slices(parts):
        its_q, its_k, its_v = (t[:, heads] for t in (q, k, v))
        given["gate_k"] = None if gate_k is None or not own_gates(part) else gate_k[:, heads]
        given["mask"] = mask[:, heads] if mask is not None and mask.shape[1] > 1 else mask
        outs.append(attend(part, call, its_q, its_k, its_v, **given))
    return torch.cat(outs, dim=1)


def written_out(
    parts: Sequence[Part], call: Call, q: Tensor, k: Tensor, v: Tensor, gate_k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Turned q and k, v, the gates' keys and the bias (… i j), for attention with all logits."""
    h, i, j = q.shape[1], q.shape[2], k.shape[2]
    if len(parts) == 1:
        (part,) = parts
        bias = dense_of(part, call, i, j)
        q, k, gate_k = turned_with_gates(part, call, q, k, gate_k)
    else:
        k, v, gate_k = (for_each_query_head(t, h) for t in (k, v, gate_k))
        qs, ks, gates = [], [], []
        for part, heads in _slices(parts):
            its_gate_k = None if gate_k is None else gate_k[:, heads]
            its = turned_with_gates(part, call, q[:, heads], k[:, heads], its_gate_k)
            qs.append(its[0])
            ks.append(its[1])
            gates.append(its[2])
        q, k = torch.cat(qs, dim=1), torch.cat(ks, dim=1)
        gate_k = None if gate_k is None else torch.cat([g for g in gates if g is not None], dim=1)
        bias = _bias_of_groups(parts, call, i, j)
    if call.bias is not None:
        bias = call.bias if bias is None else call.bias + bias
    return q, k, v, for_each_query_head(gate_k, h), bias


def _slices(parts: Sequence[Part]) -> Iterator[tuple[Part, slice]]:
    first = 0
    for part in parts:
        yield part, slice(first, first + part.heads)
        first += part.heads


def _bias_of_groups(parts: Sequence[Part], call: Call, i: int, j: int) -> Tensor | None:
    biases = [dense_of(part, call, i, j) for part in parts]
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    batch = max(given, key=lambda bias: bias.ndim).shape[:-3]
    zero = given[0].new_zeros(())
    return torch.cat(
        [
            (zero if bias is None else bias).expand(*batch, part.heads, i, j)
            for part, bias in zip(parts, biases, strict=True)
        ],
        dim=-3,
    )


def own_gates(part: Part) -> bool:
    """Whether CoPE's gates come from something else than the keys."""
    return part.cope is not None and (part.cope.sep_keys or part.cope.val_gates)


def for_each_query_head(t: Any, h: int) -> Any:
    """(b hk j d) → (b h j d) in x-transformers' order: query head a uses key head a mod hk."""
    return t if t is None or t.shape[1] == h else t.repeat(1, h // t.shape[1], 1, 1)


class CoPEOfGroups(nn.Module):
    """CoPE's bias where only some groups of a layer's heads have it.

    Args:
        parts: of all groups.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.heads = [part.heads for part in parts]
        self.groups = nn.ModuleList(part.cope or nn.Identity() for part in parts)

    def forward(self, query: Tensor, attn_logits: Tensor) -> Tensor:
        """(b h i d) and (b h i j) in, the bias (b h i j) out."""
        pieces = zip(
            torch.split(query, self.heads, 1), torch.split(attn_logits, self.heads, 1), strict=True
        )
        return torch.cat(
            [
                cope(q, logits) if isinstance(cope, CoPE) else torch.zeros_like(logits)
                for cope, (q, logits) in zip(self.groups, pieces, strict=True)
            ],
            dim=1,
        )

    @contextmanager
    def gates_from(self, gate_k: Tensor | None, scale: float) -> Iterator[None]:
        """See `CoPE.gates_from`; gate_k is (b h j d), of all groups."""
        keys = [None] * len(self.heads) if gate_k is None else torch.split(gate_k, self.heads, 1)
        with ExitStack() as stack:
            for cope, its_keys in zip(self.groups, keys, strict=True):
                if isinstance(cope, CoPE):
                    own = cope.sep_keys or cope.val_gates
                    stack.enter_context(cope.gates_from(its_keys if own else None, scale))
            yield
