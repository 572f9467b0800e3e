"""CoPE attention by Triton kernels, for CUDA: what `xcope.ops.cope.gpu.kernels` is launched with.

Memory beside inputs and outputs: the table logits and what a backward hands from one kernel to the
next, all of it for a chunk of queries at a time, so that it stays below ``WORKSPACE`` bytes
however long the rows are.

Under ``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources as OutOfResources  # noqa: PLC0414, for callers

from xcope.ops.cope.gpu import kernels
from xcope.ops.cope.gpu.tuning import INTERPRETED, choice, launch
from xcope.ops.cope.inputs import CopeInputs
from xcope.ops.documents import document_of

WORKSPACE = 2**30  # bytes
PIECES = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 0}  # of the lifts' running sums


class Prepared:
    """Inputs as the kernels read them, and the sizes that follow.

    Shape notation as in `xcope.ops.cope.cope_attention`. The last dimension of q, k, v, gate_k is
    contiguous, and that of the table e, which is in their dtype.
    """

    def __init__(self, inputs: CopeInputs):
        self.q, self.k, self.v = (dense(t) for t in (inputs.q, inputs.k, inputs.v))
        self.gate_k = None if inputs.gate_k is None else dense(inputs.gate_k)
        self.e = inputs.table.to(inputs.q.dtype).contiguous()
        self.mask, self.scale, self.causal = inputs.mask, inputs.scale, inputs.causal
        self.sharpness = inputs.sharpness
        edges = inputs.cu_seqlens
        self.documents = None if edges is None else spans(edges, self.q.shape[2])
        self.last = self.e.shape[-2] - 1
        # columns of table logits: one after the last position at least, and a multiple of 8
        self.width = (self.last + 2 + 7) // 8 * 8
        self.choice = choice(max(block(self.q), block(self.v)), self.q.element_size())

    def rows_at_once(self, per_row: int) -> int:
        """How many queries of all heads go at once if each needs so many bytes."""
        b, h, i, _ = self.q.shape
        rows = WORKSPACE // max(1, b * h * per_row) // 128 * 128
        return min(i, max(128, rows))

    def shared(self) -> dict[str, Any]:
        """The arguments that all kernels have."""
        q, k, v, g, mask = self.q, self.k, self.v, self.gate_k, self.mask
        g = k if g is None else g
        longest = max(t.N for t in self.choice.forward + self.choice.backward_q)
        strides = {
            f"{name}_{axis}": stride
            for name, t, axes in (
                ("q", q, "bhi"),
                ("k", k, "bhj"),
                ("v", v, "bhj"),
                ("g", g, "bhj"),
            )
            for axis, stride in zip(axes, t.stride()[:3], strict=True)
        }
        m_strides = (0, 0, 0, 0) if mask is None else broadcast_strides(mask)
        strides |= dict(zip(("m_b", "m_h", "m_i", "m_j"), m_strides, strict=True))
        first, past = (q, q) if self.documents is None else self.documents
        keys_alone = mask is not None and mask.shape[2] == 1
        return strides | {
            "q": q,
            "k": k,
            "v": v,
            "gate_k": g,
            "mask": q if mask is None else mask.view(torch.uint8),
            "first": first,
            "past": past,
            "H": q.shape[1],
            "GROUPS": q.shape[1] // k.shape[1],
            "NQ": q.shape[2],
            "NK": k.shape[2],
            "W": self.width,
            "LENGTH": k.shape[2].bit_length(),
            "last": self.last,
            "sharp": self.sharpness,
            "D": q.shape[3],
            "DV": v.shape[3],
            "BD": block(q),
            "BDV": block(v),
            "CAUSAL": self.causal,
            "DOCS": self.documents is not None,
            "MASK": 0 if mask is None else 1 if keys_alone else 2,
            "GATES": self.gate_k is not None,
            "SOFT": self.sharpness > 0,
            "FB": min(22, 31 - (self.last + longest + 1).bit_length()),
            "PIECES": PIECES[q.dtype],
            "PRECISION": precision(q.dtype),
        }


class Saved(NamedTuple):
    """What the forward gives, and the backward needs.

    Args:
        out: (b h i dv).
        lse: (b h i), float32, in units of log 2.
        residue: what rounding took from out, so that the backward's sums Σ dout·out are those of
            float32; empty where nothing was rounded.
        counted: (b h i), int32, fixed-point, when the row's tile stopped counting.
        start: (b h i), int32, the key at which it did.
    """

    out: Tensor
    lse: Tensor
    residue: Tensor
    counted: Tensor
    start: Tensor


def block(t: Tensor) -> int:
    """The power of two that holds a head's dimensions, at least what a matrix product needs."""
    width: int = triton.next_power_of_2(t.shape[-1])
    return max(16, width)


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as torch.set_float32_matmul_precision says."""
    if INTERPRETED:
        return "interpreted"
    names = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
    return names[torch.get_float32_matmul_precision()] if dtype == torch.float32 else "ieee"


def broadcast_strides(mask: Tensor) -> tuple[int, ...]:
    """0 where the mask has one entry for all."""
    return tuple(s if n > 1 else 0 for n, s in zip(mask.shape, mask.stride(), strict=True))


def chunks(given: Prepared, per_row: int) -> Iterator[tuple[int, int]]:
    """First query and number of queries of each chunk."""
    n = given.q.shape[2]
    rows = given.rows_at_once(per_row)
    for row0 in range(0, n, rows):
        yield row0, min(rows, n - row0)


def table_logits(given: Prepared, row0: int, rows: int) -> Tensor:
    """log2(e) q eᵀ of a chunk of queries, (b h rows W), float32; padded as the kernels want it."""
    b, h, _, d = given.q.shape
    L = given.q.new_empty(b, h, rows, given.width, dtype=torch.float32)
    M, N = (64, 64) if d * given.q.element_size() <= 512 else (32, 32)
    kernels.table_logits[triton.cdiv(rows, M) * b * h, triton.cdiv(given.width, N)](
        given.q,
        given.e,
        L,
        *given.q.stride()[:3],
        *(given.e.stride()[:2] if given.e.ndim == 3 else (0, given.e.stride(0))),
        h,
        row0,
        rows,
        given.last + 1,
        given.width,
        D=d,
        BD=block(given.q),
        M=M,
        N=N,
        PRECISION=precision(given.q.dtype),
    )
    return L


def empty(inputs: CopeInputs) -> Saved:
    """Memory for what `forward` gives."""
    q, rows, dv = inputs.q, inputs.q.shape[:3], inputs.v.shape[3]
    return Saved(
        out=q.new_empty(*rows, dv),
        lse=q.new_empty(rows, dtype=torch.float32),
        residue=q.new_empty(*rows, dv if PIECES[q.dtype] else 0),
        counted=q.new_empty(rows, dtype=torch.int32),
        start=q.new_empty(rows, dtype=torch.int32),
    )


def forward(inputs: CopeInputs) -> Saved:
    """Of inputs that the kernels take.

    Raises:
        triton.runtime.errors.OutOfResources: no tiles fit on this GPU.
    """
    saved, (b, h) = empty(inputs), inputs.q.shape[:2]
    if 0 in (*saved.out.shape, inputs.k.shape[2]):
        for t, value in ((saved.out, 0.0), (saved.residue, 0.0), (saved.lse, torch.inf)):
            t.fill_(value)
        return saved
    given = Prepared(inputs)
    shared = given.shared()
    for row0, rows in chunks(given, 4 * given.width):
        launch(
            "forward",
            given.choice.forward,
            lambda meta, rows=rows: (triton.cdiv(rows, meta["M"]) * b * h,),
            shared
            | {
                "L": table_logits(given, row0, rows),
                "out": saved.out,
                "residue": saved.residue,
                "lse": saved.lse,
                "count": saved.counted,
                "start": saved.start,
                "row0": row0,
                "ROWS": rows,
                "scale": given.scale * kernels.LOG2E.value,
            },
        )
    return saved


def backward(dout: Tensor, saved: Saved, inputs: CopeInputs) -> dict[str, Tensor]:
    """Gradients by name; ``dout`` (b h i dv) is contiguous. Raises as `forward`."""
    names = ["q", "k", "v", "pos_emb"] + ["gate_k"] * (inputs.gate_k is not None)
    if 0 in (*inputs.q.shape, *inputs.k.shape, inputs.v.shape[3]):
        return {name: torch.zeros_like(getattr(inputs, name)) for name in names}
    given = Prepared(inputs)
    P, N = given.last + 1, given.choice.backward_q[0].N
    per_row = (
        2 * 4 * given.width + given.q.element_size() * P + 8 * triton.cdiv(given.k.shape[2], N)
    )
    sums = Sums(
        k=given.k.new_empty(given.k.shape, dtype=torch.float32),
        v=given.v.new_empty(given.v.shape, dtype=torch.float32),
        e=torch.zeros_like(given.e, dtype=torch.float32),
        gate_k=None if given.gate_k is None else torch.empty_like(given.k, dtype=torch.float32),
    )
    grads = {
        name: t.new_empty(t.shape) for name, t in (("q", given.q), ("k", given.k), ("v", given.v))
    }
    for row0, rows in list(chunks(given, per_row)):
        Chunk(given, saved, dout, row0, rows).backward(sums, grads)
    grads["pos_emb"] = sums.e.to(inputs.table.dtype)
    if sums.gate_k is not None:
        grads["gate_k"] = sums.gate_k.to(given.k.dtype)
    return grads


@dataclass
class Sums:
    """Gradients in float32, as far as they are sums over queries; k's still lacks its scale."""

    k: Tensor
    v: Tensor
    e: Tensor
    gate_k: Tensor | None


@dataclass
class Chunk:
    """The backward of some queries, from row0 on."""

    given: Prepared
    saved: Saved
    dout: Tensor
    row0: int
    rows: int

    def buffer(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory to be written to, of this shape for each head."""
        b, h = self.given.q.shape[:2]
        return torch.empty(b, h, *shape, dtype=dtype, device=self.given.q.device)

    def backward(self, sums: Sums, grads: dict[str, Tensor]) -> None:
        """Fill in its rows of dq and add to the sums; the last chunk fills in dk and dv."""
        given, tiles = self.given, self.given.choice
        (b, _, i, _), (hk, j) = given.q.shape, given.k.shape[1:3]
        counting, plain = tiles.backward_k[0], tiles.backward_k_plain[0]
        later = i - self.row0 - self.rows
        edges = max(1, triton.cdiv(j - later if given.causal else j, counting.N))
        shared = given.shared() | {
            "L": table_logits(given, self.row0, self.rows),
            "dout": self.dout,
            "lse": self.saved.lse,
            "D_rows": self.buffer(i),
            "edge_count": self.buffer(edges, self.rows, dtype=torch.int32),
            "edge_lift": self.buffer(edges, self.rows),
            "counts_from": self.buffer(triton.cdiv(self.rows, tiles.piece), dtype=torch.int32),
            "row0": self.row0,
            "ROWS": self.rows,
            "EDGES": edges,
            "PIECE": tiles.piece,
            "ALIGN": max(t.M for t in tiles.backward_k),
            "scale": given.scale,
            "log2_scale": given.scale * kernels.LOG2E.value,
        }
        sums.e += self._backward_q(shared, grads["q"])
        parts: dict[str, Any] = {"part_k": sums.k, "part_v": sums.v}
        mine: dict[str, Any] = {"dgate": sums.k if sums.gate_k is None else sums.gate_k}
        mine |= {"ADD": self.row0 > 0, "PLAIN": plain.N}
        launch(
            "backward_k",
            tiles.backward_k,
            lambda meta: (triton.cdiv(j, meta["N"]) * b * hk,),
            shared | parts | mine,
        )
        final: dict[str, Any] = {"dk": grads["k"], "dv": grads["v"]}
        if later:
            final |= {"dk": sums.k, "dv": sums.v, "scale": 1.0}
        launch(
            "backward_k_plain",
            tiles.backward_k_plain,
            lambda meta: (triton.cdiv(j, meta["N"]) * b * hk,),
            shared | parts | final,
        )

    def _backward_q(self, shared: dict[str, Any], dq: Tensor) -> Tensor:
        """dq; and this chunk's gradient of the table, in float32."""
        given, P = self.given, self.given.last + 1
        b, h = given.q.shape[:2]
        rounded = self.buffer(self.rows, P, dtype=given.q.dtype)
        launch(
            "backward_q",
            given.choice.backward_q,
            lambda meta: (triton.cdiv(self.rows, meta["M"]) * b * h,),
            shared
            | {
                "e": given.e,
                "out": self.saved.out,
                "residue": self.saved.residue,
                "count": self.saved.counted,
                "start": self.saved.start,
                "dq": dq,
                "dL": self.buffer(self.rows, given.width),
                "dL_rounded": rounded,
                "P": P,
                "BP": 32 if given.q.element_size() * block(given.q) > 256 else 64,
                "e_h": given.e.stride(0) if given.e.ndim == 3 else 0,
                "e_p": given.e.stride(-2),
            },
        )
        its_q = given.q[:, :, self.row0 : self.row0 + self.rows]
        return _table_gradient(rounded, its_q, per_head=given.e.ndim == 3)


def _table_gradient(dL: Tensor, q: Tensor, per_head: bool) -> Tensor:
    """dLᵀ q, summed over the batch, (p d), or (h p d); products of one row and head in float32."""
    b, h = q.shape[:2]
    parts: Tensor
    if q.dtype == torch.float32 or q.device.type != "cuda":
        parts = dL.float().mT @ q.float()
    else:
        product = torch.bmm(dL.flatten(0, 1).mT, q.flatten(0, 1), out_dtype=torch.float32)
        parts = product.view(b, h, *product.shape[1:])
    return parts.sum(0) if per_head else parts.sum((0, 1))


# -- inputs as the kernels read them -------------------------------------------------------------


def dense(t: Tensor) -> Tensor:
    """With a contiguous last dimension, and no element of a head further than 31 bits can say."""
    near = t.shape[2] * t.stride(2) < 2**31
    return t if t.stride(-1) == 1 and near else t.contiguous()


def spans(cu_seqlens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of each of n tokens, where its document begins and where it ends; (n), int32."""
    # edges that end too early were not noticed on a GPU: what is after them is the last document's
    at = document_of(cu_seqlens, n).clamp(max=max(len(cu_seqlens) - 2, 0))
    return cu_seqlens[at].int(), cu_seqlens[at + 1].int()
