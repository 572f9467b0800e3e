"""Attention with carried queries in O(n d) memory: groups of tokens, and pairs of these.

The tokens are cut into groups of `GROUP`; each is made of small blocks (`reflections`, `decays`),
step by step (`blocks.merge`). Forward, group by group of queries: first its own keys, whose
products with it are written out; then, group by group to the start, the keys before it, each time
after the queries have been carried to that group's end: there it is attention as ever, and
`xcope.ops.biased.cpu.walk` computes it, compiled where that can be had. Softmaxes of the groups are
put together as they come. Kept for the backward: out, m, 1 / Σ exp(y − m), with y the biased
logits.

Backward, from the last group to the first: the queries are carried again, each step kept
(n d numbers for a group, the most that is held), and go the way in reverse. When a group's turn
comes, all later ones have left what they add to the gradients of its keys and of its move.

The states that a group of queries goes through are not kept from the forward: that would be
O(n² d / GROUP).

Shape notation: (b h i d) of the call, as many key heads as heads; j keys; u = b·h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased.cpu import walk as biased
from xcope.ops.biased.cpu.eager import Bias
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.carried import decays, reflections
from xcope.ops.carried.blocks import (
    Block,
    Steps,
    merge,
    merge_backward,
    of_move,
    of_queries,
    on,
    over,
)
from xcope.ops.carried.inputs import CarriedInputs
from xcope.ops.inputs import heads_last
from xcope.ops.terms import Terms, named, part, placed
from xcope.ops.tiling.tiles import Tile

GROUP = 256
"""Tokens of a group, at most."""
MERGED = 8
"""Blocks that are merged at a time."""

KINDS: dict[str, Any] = {"path": reflections, "wall": decays}


class Saved(NamedTuple):
    """What the forward gives."""

    out: Tensor  # (b h i dv)
    m: Tensor  # (b h i), about the largest y; finite
    inverse: Tensor  # (b h i), 1 / Σ exp(y − m); 0 in rows that see no key


def empty(inputs: CarriedInputs) -> Saved:
    """Of the shapes and strides that `forward` gives."""
    rows = inputs.q.shape[:3]
    out = heads_last(inputs.q, *rows, inputs.v.shape[-1])
    return Saved(out, inputs.q.new_empty(rows), inputs.q.new_empty(rows))


# -- groups ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Consecutive tokens: keys j0 … j1 − 1 and, of these, queries i0 … i1 − 1.

    Args:
        lead: keys before the first query; all of them where there are no queries.
    """

    j0: int
    j1: int
    i0: int
    i1: int
    lead: int

    @property
    def keys(self) -> slice:
        return slice(self.j0, self.j1)

    @property
    def queries(self) -> slice:
        return slice(self.i0, self.i1)


def groups_of(i: int, j: int) -> list[Group]:
    """Groups of about equal size, for the last i of j tokens as queries."""
    count = -(-j // GROUP)
    edges = [j * n // count for n in range(count + 1)]
    found = []
    for j0, j1 in pairwise(edges):
        i0, i1 = max(0, j0 - (j - i)), max(0, j1 - (j - i))
        found.append(Group(j0, j1, i0, i1, j1 - j0 - (i1 - i0)))
    return found


@dataclass
class Made:
    """A group, made of blocks: what was merged, and what for the backward."""

    blocks: list[Block]
    kept: Any
    steps: list[tuple[int, Steps]]


def make(inputs: CarriedInputs, group: Group, with_queries: bool = True) -> Made:
    """The group of all rows and heads, its last block the whole of it."""
    kind, n = KINDS[inputs.kind], group.j1 - group.j0
    counts = _counts(kind.SIZE, n)
    B = kind.SIZE if counts else n
    whole = B
    for count in counts:
        whole *= count

    def blocks_of(t: Tensor, lead: int = 0) -> Tensor:
        t = t.flatten(0, 1)
        if lead or whole > n:  # what does nothing stands before and after
            t = F.pad(t, (0, 0, lead, whole - n))
        return t.reshape(-1, B, t.shape[-1])

    q = None
    if with_queries and group.i1 > group.i0:
        q = blocks_of(inputs.q[:, :, group.queries], group.lead)
    k, moves = blocks_of(inputs.k[:, :, group.keys]), blocks_of(inputs.moves[:, :, group.keys])
    block, kept = kind.forward(q, k, moves)
    made = Made([block], kept, [])
    for count in counts:
        block, steps = merge(block, count)
        made.blocks.append(block)
        made.steps.append((count, steps))
    return made


def make_backward(
    kind: str, made: Made, grads: Block, heads: Sequence[int], group: Group
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the group's queries, keys and moves, (b h … …)."""
    for block, (count, steps) in zip(made.blocks[-2::-1], made.steps[::-1], strict=True):
        grads = merge_backward(block, steps, grads, count)
    dq, dk, dmoves = KINDS[kind].backward(made.kept, grads)

    def tokens_of(t: Tensor, lead: int = 0) -> Tensor:
        return t.reshape(*heads, -1, t.shape[-1])[:, :, lead : group.j1 - group.j0]

    return None if dq is None else tokens_of(dq, group.lead), tokens_of(dk), tokens_of(dmoves)


def _counts(size: int, n: int) -> list[int]:
    """How many blocks are merged at each step, from blocks of a size to n tokens."""
    counts = []
    while size < n:
        counts.append(min(MERGED, -(-n // size)))
        size *= counts[-1]
    return counts


# -- products that are written out, of a group's queries with its own keys -------------------------


class Own:
    """Logits of a group with its own keys: scale, bias and mask."""

    def __init__(self, inputs: CarriedInputs, bias: Bias, group: Group):
        self.inputs, self.bias, self.group = inputs, bias, group
        queries, keys = group.i1 - group.i0, group.j1 - group.j0
        self.tile = Tile(group.i0, group.i1, group.j0, group.j1, group.keys, keys, group.lead, 0)
        seen = torch.ones(queries, keys, dtype=torch.bool, device=inputs.q.device)
        self.hidden = seen.tril_(group.lead).logical_not_()
        if inputs.mask is not None:
            self.hidden = self.hidden | ~_cut(inputs.mask, group.queries, group.keys)

    def logits(self, products: Tensor) -> Tensor:
        """(b h queries keys) from (u whole whole); −∞ where not seen."""
        b, h = self.inputs.q.shape[:2]
        lead, n = self.group.lead, self.group.j1 - self.group.j0
        s = products[:, lead:n, :n].reshape(b, h, n - lead, n) * self.inputs.scale
        self.bias.add(s[:, :, None], self.tile)
        return s.masked_fill_(self.hidden, -torch.inf)

    def products(self, ds: Tensor, whole: int) -> Tensor:
        """The gradient of the products from that of the logits, which is used up."""
        self.bias.accumulate(ds[:, :, None], self.tile)
        lead, n = self.group.lead, self.group.j1 - self.group.j0
        ds = ds.mul_(self.inputs.scale).flatten(0, 1)
        if lead or whole > n:
            ds = F.pad(ds, (0, whole - n, lead, whole - n))
        return ds


def _cut(mask: Tensor, queries: slice, keys: slice) -> Tensor:
    mask = mask[:, :, queries] if mask.shape[2] > 1 else mask
    return mask[..., keys] if mask.shape[3] > 1 else mask


# -- pairs of groups -------------------------------------------------------------------------------


def _pair(inputs: CarriedInputs, q: Tensor, k: Tensor, queries: Group, keys: Group) -> BiasedInputs:
    """Attention of carried queries (u n d) with the keys of an earlier group."""
    b, h = inputs.q.shape[:2]
    bias, mask = inputs.bias, inputs.mask
    return BiasedInputs(
        q=q.view(b, h, *q.shape[1:]),
        k=k.view(b, h, *k.shape[1:]),
        v=inputs.v[:, :, keys.keys],
        bias=None if bias is None else _part(bias, queries, keys, inputs.k.shape[2]),
        scale=inputs.scale,
        mask=None if mask is None else _cut(mask, queries.queries, keys.keys),
        causal=False,
    )


def _part(terms: Terms, queries: Group, keys: Group, j: int) -> Terms:
    free = j - placed(terms)
    its = slice(max(0, keys.j0 - free), max(0, keys.j1 - free))
    return part(terms, slice(None), queries.queries, its)


def forward(inputs: CarriedInputs) -> Saved:
    """All groups of queries; inputs are float32 or float64, finite, their mask has 4 dimensions."""
    (b, h, i, _), j = inputs.q.shape, inputs.k.shape[2]
    saved, bias = empty(inputs), Bias(inputs.bias, (b, h, i, j))
    earlier: list[tuple[Group, Tensor, Tensor]] = []  # with keys and move
    for group in groups_of(i, j):
        whole = make(inputs, group).blocks[-1]
        if whole.q is not None:
            products, q = of_queries(whole)
            rows = _own(inputs, Own(inputs, bias, group), products)
            q = q[:, group.lead : group.j1 - group.j0].contiguous()
            for keys, k, move in reversed(earlier):
                rows = _with(rows, biased.forward(_pair(inputs, q, k, group, keys)))
                q = over(q, move)
            for place, value in zip(saved, rows, strict=True):
                place[:, :, group.queries] = value
        k = whole.k[:, : group.j1 - group.j0].contiguous()
        earlier.append((group, k, whole.move))
    return saved


def _own(inputs: CarriedInputs, own: Own, products: Tensor) -> Saved:
    s = own.logits(products)
    m = s.amax(-1)
    none = m == -torch.inf
    m.masked_fill_(none, 0.0)
    s.sub_(m[..., None]).exp_()
    inverse = s.sum(-1).reciprocal_().masked_fill_(none, 0.0)
    out = s @ inputs.v[:, :, own.group.keys]
    return Saved(out.mul_(inverse[..., None]), m, inverse)


def _with(rows: Saved, others: tuple[Tensor, ...]) -> Saved:
    """The softmax over the keys of both."""
    parts = (rows, Saved(*others))
    m = torch.maximum(*(p.m.masked_fill(p.inverse == 0, -torch.inf) for p in parts))
    none = m == -torch.inf
    m.masked_fill_(none, 0.0)
    sums = [(p.m - m).exp_().div_(p.inverse).masked_fill_(p.inverse == 0, 0.0) for p in parts]
    inverse = (sums[0] + sums[1]).reciprocal_().masked_fill_(none, 0.0)
    mine, theirs = ((total * inverse)[..., None] for total in sums)
    return Saved((rows.out * mine).addcmul_(parts[1].out, theirs), m, inverse)


def backward(dout: Tensor, saved: Saved, inputs: CarriedInputs, of_bias: bool) -> dict[str, Tensor]:
    """Gradients by name; those of the bias' vectors only ``of_bias``."""
    return _Backward(dout, saved, inputs, of_bias).gradients()


@dataclass
class _Known:
    """A group that others look back at.

    Args:
        k: its keys at its end, (u n d); their gradients gather in those of k, until its turn comes.
        move: over it.
        dmove: the gradient of this, as far as it is known.
    """

    k: Tensor
    move: Tensor
    dmove: Tensor


class _Backward:
    """One backward; arguments as of `backward`."""

    def __init__(self, dout: Tensor, saved: Saved, inputs: CarriedInputs, of_bias: bool):
        self.dout, self.saved, self.inputs = dout, saved, inputs
        (b, h, i, _), j = inputs.q.shape, inputs.k.shape[2]
        self.bias = Bias(inputs.bias, (b, h, i, j), of_bias)
        self.grads = {name: heads_last(t, *t.shape) for name, t in inputs.carried().items()}
        self.dk, self.dv = self.grads["k"].zero_(), self.grads["v"].zero_()
        self.groups = groups_of(i, j)
        self.known: list[_Known] = []

    def gradients(self) -> dict[str, Tensor]:
        for group in self.groups[:-1]:
            whole = make(self.inputs, group, with_queries=False).blocks[-1]
            k = whole.k[:, : group.j1 - group.j0].contiguous()
            self.known.append(_Known(k, whole.move, torch.zeros_like(whole.move)))
        for n in reversed(range(len(self.groups))):
            self._group(n)
        return self.grads | self.bias.gradients()

    def _group(self, n: int) -> None:
        """All that is left to be known of the gradients of a group's tokens."""
        group, inputs = self.groups[n], self.inputs
        made = make(inputs, group)
        whole = made.blocks[-1]
        dq = dproducts = None
        if whole.q is not None:
            products, q = of_queries(whole)
            its = Saved(*(t[:, :, group.queries] for t in self.saved))
            dout, span = self.dout[:, :, group.queries], slice(group.lead, group.j1 - group.j0)
            dproducts = self._own(dout, its, Own(inputs, self.bias, group), products)
            dq = torch.zeros_like(q)
            if n:
                dq[:, span] = self._earlier(dout, its, q[:, span].contiguous(), n)
        dk = torch.zeros_like(whole.k)
        dk[:, : group.j1 - group.j0] = self.dk[:, :, group.keys].flatten(0, 1)
        dmove = self.known[n].dmove if n < len(self.known) else torch.zeros_like(whole.move)
        grads = Block(dq, dk, dmove, dproducts)
        dq, dk, dmoves = make_backward(inputs.kind, made, grads, inputs.q.shape[:2], group)
        if dq is not None:
            self.grads["q"][:, :, group.queries] = dq
        self.dk[:, :, group.keys] = dk
        self.grads["moves"][:, :, group.keys] = dmoves

    def _own(self, dout: Tensor, saved: Saved, own: Own, products: Tensor) -> Tensor:
        """The gradient of a group's products with its own keys."""
        prob = own.logits(products).sub_(saved.m[..., None]).exp_().mul_(saved.inverse[..., None])
        v = self.inputs.v[:, :, own.group.keys]
        self.dv[:, :, own.group.keys] += prob.mT @ dout
        D = (dout * saved.out).sum(-1, keepdim=True)
        return own.products((dout @ v.mT).sub_(D).mul_(prob), products.shape[-1])

    def _earlier(self, dout: Tensor, saved: Saved, q: Tensor, n: int) -> Tensor:
        """The gradient of a group's queries at its beginning, from the groups before it."""
        group, states = self.groups[n], [q]
        for known in self.known[n - 1 : 0 : -1]:
            states.append(over(states[-1], known.move))
        dq = torch.zeros_like(q)
        for keys, known in zip(self.groups[:n], self.known, strict=False):
            state = states.pop()
            pair = _pair(self.inputs, state, known.k, group, keys)
            of_bias = self.bias.sums is not None
            grads = biased.backward(dout, biased.Saved(*saved), pair, of_bias)
            known.dmove.add_(of_move(state, dq, known.move))
            dq = on(dq, known.move).add_(grads["q"].reshape(dq.shape))
            self.dk[:, :, keys.keys] += grads["k"]
            self.dv[:, :, keys.keys] += grads["v"]
            if self.bias.sums is not None:
                sums = named(_part(self.bias.sums, group, keys, self.inputs.k.shape[2]))
                for name in self.bias.gradients():
                    sums[name].add_(grads[name])
        return dq
