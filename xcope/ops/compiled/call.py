"""A call of compiled attention, from tensors: what `xcope.ops.compiled.kernel` is given."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.compiled import forms, kernel, threads
from xcope.ops.compiled.frames import (
    CALL,
    COUNT,
    DECAY,
    DISTANCE,
    MIXED,
    STICK,
    VECTORS,
    size_of_frame,
)
from xcope.ops.compiled.simd import LANES
from xcope.ops.inputs import heads_last, to_heads_last
from xcope.ops.terms import OF_KEYS, WITHOUT_GRADIENT, ByDistance, Piecewise, Separable, Terms

FORMS = {
    type(None): forms.FREE,
    Separable: forms.SEPARABLE,
    ByDistance: forms.BY_DISTANCE,
    Piecewise: forms.PIECEWISE,
}
RECURRENCES = {"count": COUNT, "distance": DISTANCE, "decay": DECAY, "stick": STICK}


class Call:
    """Attention of q (b h i d), k (b hk j d) and v (b hk j dv), float32 on the CPU.

    Args:
        scale: of the logits.
        causal: query i sees keys up to its own place.
        mask: bool, broadcasts to (b h i j).
        window: int32 (1 2 i) or (b 2 i), see `xcope.ops.windows`.
        bias: of the logits.
        of_bias: the bias' vectors get gradients.
        recurrence: which one, see `xcope.ops.cope.inputs.CopeInputs`; None: there is none.
        table: of positions, (p d) or (h p d); None: none are counted.
        gate_k: (b hk j d), keys that gates are made of.
        r: (b h i c), reads the table and meets the gates' keys in place of q; c in place of d.
        head_mix: (h h), mixes the gates' logits.
        options: numbers of the recurrence, fields of `xcope.ops.compiled.frames.CALL`.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, mask: Tensor | None,
        bias: Terms | None, of_bias: bool = False, window: Tensor | None = None,
        recurrence: str | None = None, table: Tensor | None = None, gate_k: Tensor | None = None,
        r: Tensor | None = None, head_mix: Tensor | None = None, **options: float,
    ):  # fmt: skip
        (b, h, i, d), (_, hk, j, dv) = q.shape, v.shape
        given = {"q": q, "k": k, "v": v, "gate_k": gate_k, "r": r}
        self.shapes = {name: t.shape for name, t in given.items() if t is not None}
        self.kept: list[Tensor] = []  # memory that has been handed over
        self.packed = np.zeros(1, CALL)
        call = self.call = self.packed[0]
        for name, size in zip(("b", "h", "hk", "i", "j"), (b, h, hk, i, j), strict=True):
            call[name] = size
        dr = d if r is None else r.shape[-1]
        call["d"], call["dv"], call["dr"] = (n + -n % LANES for n in (d, dv, dr))
        call["causal"], call["scale"] = causal, scale
        self.counts = recurrence is not None
        call["recurrence"] = RECURRENCES[recurrence or "count"]
        for name, option in options.items():
            call[name] = option
        for name, t in given.items():
            if t is not None:
                self._hand(name, _in_vectors(t))
        self._hand_limits(mask, window)
        positions = 0
        if table is not None:
            table = _in_vectors(table).contiguous()
            positions = table.shape[-2]
            call["table"], call["last"] = table.data_ptr(), positions - 1
            call["table_step"] = 4 * table[0].numel() if table.ndim == 3 else 0
            self.kept.append(table)
        self.table, self.mixed = table, head_mix is not None
        if head_mix is not None:
            head_mix = head_mix.contiguous()
            call["mix"] = head_mix.data_ptr()
            self.kept.append(head_mix)
        self.bias, self.of_bias = bias, of_bias
        self.sums: dict[str, Tensor] = {}
        self.threads = torch.get_num_threads()
        call["heads"] = heads = h if head_mix is not None else h // hk
        own_r = 0 if r is None else int(call["dr"])
        frame = size_of_frame(int(call["d"]), int(call["dv"]), own_r, positions)
        vectors = max(1, (VECTORS if head_mix is None else MIXED) // heads)
        call["vectors"], scratch = vectors, self.threads * heads * vectors * frame
        # to begin with a cache line
        self.kept.append(torch.empty(scratch + CACHE_LINE, dtype=torch.uint8))
        call["frame"], call["scratch"] = frame, -(-self.kept[-1].data_ptr() // CACHE_LINE)
        call["scratch"] *= CACHE_LINE
        tiles = -(-i // (LANES * vectors))
        groups, chunks = b * h // heads, 1
        while (
            chunks < tiles
            and groups * chunks % self.threads
            and groups * chunks < EVEN * self.threads
        ):
            chunks += 1
        call["chunks"], call["tasks"] = chunks, groups * chunks
        self._hand_bias(j)

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """out (b h i dv); m, 1 / Σ exp(y − m), counts and where counting began, each (b h i)."""
        call, (b, h, i, _) = self.call, self.shapes["q"]
        like = self.kept[0]
        out = heads_last(like, b, h, i, int(call["dv"]))
        self._hand("out", out)
        m, inverse = like.new_empty(b, h, i), like.new_empty(b, h, i)
        counting = b, h, i if self.counts else 0
        counted = like.new_empty(counting, dtype=torch.float64)
        start = like.new_empty(counting, dtype=torch.int32)
        self._hand_rows(m, inverse, counted, start)
        threads.run(kernel.forward, [self.packed.ctypes.data])
        return _cut(out, self.shapes["v"][-1]), m, inverse, counted, start

    def backward(
        self, dout: Tensor, out: Tensor, m: Tensor, inverse: Tensor, *counts: Tensor
    ) -> dict[str, Tensor]:
        """Gradients by name."""
        call, (b, h, i, _), (_, hk, j, _) = self.call, self.shapes["q"], self.shapes["k"]
        self._hand("dout", _in_vectors(dout))
        self._hand("out", _in_vectors(out))
        self._hand_rows(m, inverse, *counts)
        grads: dict[str, Tensor] = {}
        for name, field, size in (("q", "dq", "d"), ("r", "dr_", "dr")):
            if name in self.shapes:
                grads[name] = heads_last(dout, b, h, i, int(call[size]))
                self._hand(field, grads[name])
        by_chunk = {}
        for name, field, size in (
            ("k", "dk", "d"),
            ("v", "dv_", "dv"),
            ("gate_k", "dgate_k", "dr"),
        ):
            if name in self.shapes:
                width, chunks = int(call[size]), int(call["chunks"])
                by_chunk[name] = dout.new_zeros(chunks, b, j, hk, width).transpose(2, 3)
                self._hand(field, by_chunk[name][0])
                call[f"{field}_c"] = 4 * by_chunk[name].stride(0)
        by_thread = {}
        if self.table is not None:
            by_thread["pos_emb"] = self.table.new_zeros(self.threads, *self.table.shape)
            call["dtable"] = by_thread["pos_emb"].data_ptr()
            call["dtable_step"] = 4 * self.table.numel()
        if self.mixed:
            # in cache lines of their own
            apart = h * h + -(h * h) % (4 * CACHE_LINE)
            dmix = dout.new_zeros(self.threads, apart)
            call["dmix"], call["dmix_step"] = dmix.data_ptr(), apart
            by_thread["head_mix"] = dmix[:, : h * h].view(-1, h, h)
        threads.run(kernel.backward, [self.packed.ctypes.data])
        grads |= {name: _summed(t) for name, t in by_chunk.items()}
        grads |= {name: _summed(t) for name, t in by_thread.items()}
        for name, grad in grads.items():
            if name in self.shapes:
                grads[name] = _cut(grad, self.shapes[name][-1])
        if "pos_emb" in grads:
            read = self.shapes["r" if "r" in self.shapes else "q"][-1]
            grads["pos_emb"] = grads["pos_emb"][..., :read].contiguous()
        return grads | self._gradients_of_bias()

    # -- what is handed over -------------------------------------------------------------------

    def _hand(self, name: str, t: Tensor) -> None:
        self.kept.append(t)
        self.call[name] = t.data_ptr()
        for of, step in zip("bhn", t.stride(), strict=False):
            self.call[f"{name}_{of}"] = 4 * step

    def _hand_rows(self, *each: Tensor) -> None:
        for name, t in zip(("m", "inverse", "counted", "start"), each, strict=False):
            self.kept.append(t.contiguous())
            self.call[name] = self.kept[-1].data_ptr()

    def _hand_limits(self, mask: Tensor | None, window: Tensor | None) -> None:
        call, (b, h, i, _), j = self.call, self.shapes["q"], self.shapes["k"][2]
        if mask is not None:
            mask = mask.expand(b, h, i, j)
            call["mask"] = mask.data_ptr()
            for name, step in zip("bhij", mask.stride(), strict=True):
                call[f"mask_{name}"] = step
            self.kept.append(mask)
        if window is not None:
            window = window.contiguous()
            call["window"] = window.data_ptr()
            call["window_b"] = 4 * window[0].numel() if len(window) > 1 else 0
            self.kept.append(window)

    def _hand_bias(self, j: int) -> None:
        call, terms = self.call, self.bias
        call["form"], call["free"], call["bias_wanted"] = FORMS[type(terms)], j, self.of_bias
        if terms is None:
            return
        vectors = dict(terms.__dict__)
        if not isinstance(terms, Separable):
            table = vectors.pop("warp") if isinstance(terms, Piecewise) else vectors.pop("table")
            table = table.view(-1, table.shape[-1])
            before, after = (end.expand(-1, forms.MARGIN) for end in (table[:, :1], table[:, -1:]))
            vectors["distances"] = torch.cat([before, table, after], dim=1)
            call["farthest"], call["consecutive"] = table.shape[-1] - 1, True
            for name in ("q_pos", "k_pos"):
                call["consecutive"] &= bool((vectors[name].diff(dim=-1) == 1).all())
                vectors[name] = vectors[name].clamp(-(2**29), 2**29).int()
        b, h = self.shapes["q"][:2]
        for name, t in vectors.items():
            length = t.shape[-1]
            self.kept.append(t.contiguous())
            call[name], call[f"n_{name}"] = self.kept[-1].data_ptr(), length
            call[f"many_{name}"] = t.numel() // length if t.numel() else 1
            if name in OF_KEYS:
                call["free"] = j - length
            if self.of_bias and name not in WITHOUT_GRADIENT:
                size = int(call["chunks"]), b, h, length
                self.sums[name] = torch.zeros(size, dtype=torch.float32)
                call[f"d_{name}"] = self.sums[name].data_ptr()

    def _gradients_of_bias(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, by_chunk in self.sums.items():
            grad, vector = _summed(by_chunk), name
            if name == "distances":
                margin = forms.MARGIN
                before, grad, after = grad.tensor_split([margin, grad.shape[-1] - margin], dim=-1)
                grad[..., 0] += before.sum(-1)
                grad[..., -1] += after.sum(-1)
                vector = "warp" if isinstance(self.bias, Piecewise) else "table"
            if vector in ("warp", "shrink"):  # which all heads share
                grad = grad.sum(1)
            of_rows = getattr(self.bias, vector).ndim == grad.ndim
            found[vector] = grad if of_rows else grad.sum(0)
        return found


CACHE_LINE = 64
EVEN = 8  # tasks for each thread from which on it does not matter that some have one more


def _in_vectors(t: Tensor) -> Tensor:
    """The same numbers with whole vectors in the last dimension."""
    if t.shape[-1] % LANES:
        return F.pad(t, (0, -t.shape[-1] % LANES))
    return t if t.stride(-1) == 1 else t.contiguous()


def _cut(t: Tensor, width: int) -> Tensor:
    """The inverse of `_in_vectors`."""
    return t if t.shape[-1] == width else to_heads_last(t[..., :width])


def _summed(pieces: Tensor) -> Tensor:
    total = pieces[0]
    for other in pieces[1:]:
        total += other
    return total
