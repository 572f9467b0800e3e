"""Numbers that are not finite: they reach the rows that see them, and no others.

What is masked is multiplied by 0, and 0 · NaN is NaN. So the definitions multiply with `scores` and
`weighted_sums`, products over the pairs of a query and a key that is seen.

Tiles multiply as ever. Once a number that they are given is not finite, rows that may meet one are
computed by the definition, some at a time, and all others in tiles, where a 0 stands in place of
what is not finite (`Repair`). Gradients likewise: those of the two kinds of rows are added.
Whether all is finite is a sum of each tensor, far less than attention.

Shape notation as in `xcope.ops.cope.cope_attention`; hk key heads may be fewer than h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from xcope.ops.inputs import visible
from xcope.ops.windows import masked_within

Tensors = dict[str, Tensor]
Part = tuple[slice, slice, Tensor | None]  # queries, keys, mask

OF_QUERIES = ("q", "r")
OF_KEYS = ("k", "v", "gate_k")
AREA = 2**21  # logits that the definition has at a time


def all_finite(*tensors: Tensor | None) -> bool:
    """Whether all numbers are finite, and no sum of a tensor overflows; waits for the device."""
    for t in tensors:
        if t is not None and t.is_floating_point():
            wide = torch.promote_types(t.dtype, torch.float32)
            if not math.isfinite(t.sum(dtype=wide).item()):
                return False
    return True


def noticed(out: Tensor, *others: Tensor) -> bool:
    """Whether not all numbers are finite, where one can look without waiting or cutting a graph.

    A row of out that is all 0 counts, too: PyTorch's attention leaves that of rows of NaN.
    """
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(out)
    if out.device.type != "cpu" or traced:
        return False
    if not all_finite(out, *others):
        return True
    # first a glance: one number of each row
    return bool((out[..., :1] == 0).any()) and bool((out == 0).all(-1).any())


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One run of an operator in which some numbers are not finite, and its two ways to attend.

    Args:
        tensors: by name: q, k and v, r and gate_k where there are, and whatever else has gradients
            or belongs to these.
        mask: (b h i j) or what broadcasts to it, or None.
        causal: query i sees keys up to its own place.
        window: see `xcope.ops.windows`, or None.
        definition: out (b h i dv) of some of the queries and the first keys: takes the tensors, of
            which q and those of keys are cut already, the two slices, and the mask, cut.
        mixed: what a row sees in one head may reach it in all heads.
        everywhere: names of tensors of which each number reaches every row.
        together: the definition needs all queries at once, where these are not causal: it asks
            which key is a query's own.
    """

    tensors: Tensors
    mask: Tensor | None
    causal: bool
    definition: Callable[[Tensors, slice, slice, Tensor | None], Tensor]
    window: Tensor | None = None
    mixed: bool = False
    everywhere: tuple[str, ...] = ()
    together: bool = False

    def forward(self, tiled: Callable[[Tensors], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``tiled`` gives, out (b h i dv) first, with the rows put right that need it.

        If there is more than out, the third is 1 / Σ exp (b h i): NaN for rows by definition.
        """
        cut = {n: t for n, t in self.finite().items() if n in (*OF_QUERIES, *OF_KEYS)}
        before = tiled(self.tensors | cut)
        among = tiled(self.finite())
        # where the table, say, is not finite, those differ that read what is not
        rows = self.meeting() | (before[0] != among[0]).any(-1) | ~_finite_rows(before[0])
        for left, right in zip(before[1:3], among[1:3], strict=True):
            rows |= left != right
        rows = self._in_all_heads(rows | self.lost(*before))
        out, *others = tiled(self.finite(rows))
        for part in self._parts(rows):
            theirs, place = self._out(self.tensors, part), out[:, :, part[0]]
            place.copy_(torch.where(rows[:, :, part[0], None], theirs, place))
        if others:
            others[1].masked_fill_(rows, torch.nan)
        return out, *others

    def lost(self, out: Tensor, *others: Tensor) -> Tensor:
        """Rows (b h i) whose weights are all 0 though they see a key: logits of −∞."""
        empty = torch.zeros(out.shape[:3], dtype=torch.bool, device=out.device)
        if not others or not (nothing := others[1] == 0).any():
            return empty
        for queries, keys, mask in self._cuts():
            if nothing[:, :, queries].any():
                some = self._seen(queries, keys, mask).any(-1)
                empty[:, :, queries] = nothing[:, :, queries] & some
        return empty

    def backward(
        self,
        dout: Tensor,
        saved: tuple[Tensor, ...],
        tiled: Callable[[Tensor, tuple[Tensor, ...], Tensors], Tensors],
    ) -> Tensors:
        """Gradients by name, from what `forward` gave; ``tiled`` makes those of tiles."""
        out, m, inverse, *counts = saved
        redone = inverse.isnan()
        rows = self._in_all_heads(redone | ~_finite_rows(dout))
        calm = (
            out.masked_fill(rows[..., None], 0.0),
            m,
            inverse.masked_fill(redone, 0.0),
            *counts,
        )
        grads = tiled(dout.masked_fill(rows[..., None], 0.0), calm, self.finite(redone))
        dout = dout.masked_fill(~rows[..., None], 0.0)
        for part in self._parts(rows):
            for name, grad in self._gradients(part, dout).items():
                if name in grads:
                    grads[name] += grad
        return grads

    # -- what is finite ----------------------------------------------------------------------

    def finite(self, zeroed: Tensor | None = None) -> Tensors:
        """With 0 in place of what is not finite, and for the queries of these rows (b h i)."""
        tensors = {
            name: t.masked_fill(~t.isfinite(), 0.0) if t.is_floating_point() else t
            for name, t in self.tensors.items()
        }
        if zeroed is not None:
            tensors["q"] = tensors["q"].masked_fill(zeroed[..., None], 0.0)
        return tensors

    def meeting(self) -> Tensor:
        """Rows (b h i) that are not finite, or see a key that is not."""
        q, k = self.tensors["q"], self.tensors["k"]
        rows = ~_finite_rows(q)
        if "r" in self.tensors:
            rows |= ~_finite_rows(self.tensors["r"])
        rows |= not all_finite(*(self.tensors[name] for name in self.everywhere))
        bad = torch.zeros(*q.shape[:2], k.shape[2], dtype=torch.bool, device=q.device)
        for name in OF_KEYS:
            if name in self.tensors:
                its = ~_finite_rows(self.tensors[name])
                bad |= its.repeat_interleave(q.shape[1] // its.shape[1], dim=1)
        if bad.any():
            for queries, keys, mask in self._cuts():
                seen = self._seen(queries, keys, mask)
                rows[:, :, queries] |= (seen & bad[:, :, None, keys]).any(-1)
        return rows

    def _in_all_heads(self, rows: Tensor) -> Tensor:
        return rows.any(1, keepdim=True).expand_as(rows) if self.mixed else rows

    # -- some queries at a time ----------------------------------------------------------------

    def _cuts(self) -> Iterator[Part]:
        """Some queries, the first keys, which are all that they may see, and the mask of these,
        with the window in it."""
        (b, h, i, _), j = self.tensors["q"].shape, self.tensors["k"].shape[2]
        size = max(1, AREA // max(1, b * h * j))
        if self.together and not self.causal:
            size = max(1, i)
        for i0 in range(0, i, size):
            i1 = min(i, i0 + size)
            queries, keys = slice(i0, i1), slice(0, max(0, j - i + i1) if self.causal else j)
            mask = self.mask
            if mask is not None:
                mask = mask[:, :, queries] if mask.shape[2] > 1 else mask
                mask = mask[..., keys] if mask.shape[3] > 1 else mask
            if self.window is not None:
                mask = masked_within(mask, self.window[..., queries], keys.stop)
            yield queries, keys, mask

    def _seen(self, queries: slice, keys: slice, mask: Tensor | None) -> Tensor:
        q, k = self.tensors["q"][:, :, queries], self.tensors["k"][:, :, keys]
        return visible(q, k, mask, self.causal)

    def _parts(self, rows: Tensor) -> Iterator[Part]:
        """Those in which there are such rows."""
        for part in self._cuts():
            if rows[:, :, part[0]].any():
                yield part

    def _out(self, tensors: Tensors, part: Part) -> Tensor:
        queries, keys, mask = part
        cut = {n: t[:, :, keys] for n, t in tensors.items() if n in OF_KEYS}
        cut |= {n: t[:, :, queries] for n, t in tensors.items() if n in OF_QUERIES}
        return self.definition(tensors | cut, queries, keys, mask)

    def _gradients(self, part: Part, dout: Tensor) -> Tensors:
        def differentiate() -> Tensors:
            leaves = {
                n: t.detach().requires_grad_(t.is_floating_point()) for n, t in self.tensors.items()
            }
            wanted = {n: t for n, t in leaves.items() if t.requires_grad}
            grads = torch.autograd.grad(
                self._out(leaves, part),
                list(wanted.values()),
                dout[:, :, part[0]],
                allow_unused=True,
                materialize_grads=True,
            )
            return dict(zip(wanted, grads, strict=True))

        # where an operator is at work, autograd records nothing, whatever the grad mode says
        with ThreadPoolExecutor(1) as elsewhere:
            return elsewhere.submit(differentiate).result()


def _finite_rows(t: Tensor) -> Tensor:
    """(… d) → (…)."""
    return t.isfinite().all(-1)


# -- products over the pairs of a query and a key that is seen -------------------------------------
#
# In gradients of any order too. Compiled graphs, whose tracer knows no such operators, multiply as
# ever. Shapes: i queries, j keys, d dimensions, all of them after any others, which broadcast;
# seen: bool, broadcasts to (… i j).


def scores(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """q_i·k_j where seen, 0 elsewhere: (… i j) from (… i d) and (… j d), equal but for i and j."""
    if torch.compiler.is_compiling():
        return (q @ k.mT).masked_fill(~seen, 0.0)
    return cast(Tensor, _Scores.apply(q, k, seen.expand(*q.shape[:-1], k.shape[-2])))  # type: ignore[no-untyped-call]


def weighted_sums(weights: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Σ_j w_ij v_j over the seen keys: (… i d) from (… i j) and (… j d)."""
    if torch.compiler.is_compiling():
        return weights.masked_fill(~seen, 0.0) @ values
    return cast(Tensor, _WeightedSums.apply(weights, values, seen.expand_as(weights)))  # type: ignore[no-untyped-call]


class _OfPairs(torch.autograd.Function):
    """Keeps its arguments for both directions of differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class _Scores(_OfPairs):
    @staticmethod
    def forward(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(~seen, 0.0)

    @staticmethod
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor, Tensor, None]:
        q, k, seen = ctx.saved_tensors
        return weighted_sums(ds, k, seen), weighted_sums(ds.mT, q, seen.mT), None

    @staticmethod
    def jvp(ctx: Any, dq: Tensor, dk: Tensor, _: None) -> Tensor:
        q, k, seen = ctx.saved_tensors
        return scores(dq, k, seen) + scores(q, dk, seen)


class _WeightedSums(_OfPairs):
    @staticmethod
    def forward(weights: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        weights = weights.masked_fill(~seen, 0.0)
        finite, infinite = values.isfinite(), values.isinf()
        sums = weights @ values.masked_fill(~finite, 0.0)
        # infinities of one sign are infinite, of both NaN, and so is one of no weight
        signs = values.sign().masked_fill(~infinite, 0.0)
        signed, all_of_them = weights @ signs, weights.abs() @ signs.abs()
        infinity = torch.where(signed.abs() == all_of_them, signed.sign() * torch.inf, torch.nan)
        sums = torch.where(all_of_them > 0, sums + infinity, sums)
        weightless = (seen & (weights == 0)).to(weights.dtype) @ infinite.to(weights.dtype)
        nan = seen.to(weights.dtype) @ values.isnan().to(weights.dtype)
        return sums.masked_fill(nan + weightless > 0, torch.nan)

    @staticmethod
    def backward(ctx: Any, dsums: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, values, seen = ctx.saved_tensors
        return scores(dsums, values, seen), weighted_sums(weights.mT, dsums, seen.mT), None

    @staticmethod
    def jvp(ctx: Any, dweights: Tensor, dvalues: Tensor, _: None) -> Tensor:
        weights, values, seen = ctx.saved_tensors
        return weighted_sums(dweights, values, seen) + weighted_sums(weights, dvalues, seen)
