"""CoPE attention by Triton kernels, for CUDA: what `xcope.ops.cope.gpu.kernels` is launched with.

Memory beside inputs and outputs: the table logits and what a backward hands from one kernel to the
next, all of it for a chunk of queries at a time, so that it stays below ``WORKSPACE`` bytes
however long the rows are.

Under ``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources as OutOfResources  # noqa: PLC0414, for callers

from xcope.ops.cope.gpu import kernels
from xcope.ops.cope.gpu.attention import WHAT, backward_by_tiles
from xcope.ops.cope.gpu.tuning import INTERPRETED, Choice, choice, launch
from xcope.ops.cope.operator import Saved, cope
from xcope.ops.documents import document_of
from xcope.ops.fallback import warn
from xcope.ops.inputs import few_queries

WORKSPACE = 2**30  # bytes
PIECES = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 0}  # of the lifts' running sums


@dataclass(frozen=True, kw_only=True)
class Call:
    """The tensors of one call, as the kernels read them, and its options.

    Shape notation as in `xcope.ops.cope.cope_attention`. The last dimension of q, k, v, gate_k is
    contiguous, and that of e.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    e: Tensor
    gate_k: Tensor | None
    mask: Tensor | None
    documents: tuple[Tensor, Tensor] | None
    scale: float
    causal: bool
    sharpness: float

    @property
    def last(self) -> int:
        return self.e.shape[-2] - 1

    @property
    def width(self) -> int:
        """Columns of table logits: one behind the last position at least, and a multiple of 8."""
        return (self.last + 2 + 7) // 8 * 8

    @property
    def choice(self) -> Choice:
        return choice(max(block(self.q), block(self.v)), self.q.element_size())

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


@dataclass
class Result:
    """What the forward gives.

    Args:
        out: (b h i dv).
        residue: what rounding took from it, so that the backward's sums Σ dout·out are those of
            float32; empty where nothing was rounded.
        lse: (b h i), float32, in units of log 2.
        count: (b h i), int32, fixed-point, when the row's tile stopped counting.
        start: (b h i), int32, the key at which it did.
    """

    out: Tensor
    residue: Tensor
    lse: Tensor
    count: Tensor
    start: Tensor


@dataclass
class Gradients:
    """Like the tensors of the call that they belong to; that of e is in float32."""

    q: Tensor
    k: Tensor
    v: Tensor
    e: Tensor
    gate_k: Tensor | None


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


def chunks(call: Call, per_row: int) -> Iterator[tuple[int, int]]:
    """First query and number of queries of each chunk."""
    n = call.q.shape[2]
    rows = call.rows_at_once(per_row)
    for row0 in range(0, n, rows):
        yield row0, min(rows, n - row0)


def table_logits(call: Call, row0: int, rows: int) -> Tensor:
    """log2(e) q eᵀ of a chunk of queries, (b h rows W), float32; padded as the kernels want it."""
    b, h, _, d = call.q.shape
    L = call.q.new_empty(b, h, rows, call.width, dtype=torch.float32)
    M, N = (64, 64) if d * call.q.element_size() <= 512 else (32, 32)
    kernels.table_logits[triton.cdiv(rows, M) * b * h, triton.cdiv(call.width, N)](
        call.q,
        call.e,
        L,
        *call.q.stride()[:3],
        *(call.e.stride()[:2] if call.e.ndim == 3 else (0, call.e.stride(0))),
        h,
        row0,
        rows,
        call.last + 1,
        call.width,
        D=d,
        BD=block(call.q),
        M=M,
        N=N,
        PRECISION=precision(call.q.dtype),
    )
    return L


def forward(call: Call) -> Result:
    b, h, i, _ = call.q.shape
    result = Result(
        out=call.q.new_empty(b, h, i, call.v.shape[3]),
        residue=call.q.new_empty(b, h, i, call.v.shape[3] if PIECES[call.q.dtype] else 0),
        lse=call.q.new_empty(b, h, i, dtype=torch.float32),
        count=call.q.new_empty(b, h, i, dtype=torch.int32),
        start=call.q.new_empty(b, h, i, dtype=torch.int32),
    )
    if 0 in (*result.out.shape, call.k.shape[2]):
        for t, value in ((result.out, 0.0), (result.residue, 0.0), (result.lse, torch.inf)):
            t.fill_(value)
        return result
    shared = call.shared()
    for row0, rows in chunks(call, 4 * call.width):
        launch(
            "forward",
            call.choice.forward,
            lambda meta, rows=rows: (triton.cdiv(rows, meta["M"]) * b * h,),
            shared
            | {
                "L": table_logits(call, row0, rows),
                "out": result.out,
                "residue": result.residue,
                "lse": result.lse,
                "count": result.count,
                "start": result.start,
                "row0": row0,
                "ROWS": rows,
                "scale": call.scale * kernels.LOG2E.value,
            },
        )
    return result


def backward(call: Call, result: Result, dout: Tensor) -> Gradients:
    """Of all tensors; ``dout`` (b h i dv) is contiguous."""
    P, N = call.last + 1, call.choice.backward_q[0].N
    per_row = 2 * 4 * call.width + call.q.element_size() * P + 8 * triton.cdiv(call.k.shape[2], N)
    if 0 in (*call.q.shape, *call.k.shape, call.v.shape[3]):
        q, k, v, e = (torch.zeros_like(t) for t in (call.q, call.k, call.v, call.e))
        return Gradients(q, k, v, e, None if call.gate_k is None else torch.zeros_like(k))
    parts = list(chunks(call, per_row))
    sums = Sums(
        k=call.k.new_empty(call.k.shape, dtype=torch.float32),
        v=call.v.new_empty(call.v.shape, dtype=torch.float32),
        e=torch.zeros_like(call.e, dtype=torch.float32),
        gate_k=None if call.gate_k is None else torch.empty_like(call.k, dtype=torch.float32),
    )
    grads = Gradients(
        q=call.q.new_empty(call.q.shape),
        k=call.k.new_empty(call.k.shape),
        v=call.v.new_empty(call.v.shape),
        e=call.e,
        gate_k=None,
    )
    for row0, rows in parts:
        Chunk(call, result, dout, row0, rows).backward(sums, grads)
    grads.e = sums.e
    grads.gate_k = None if sums.gate_k is None else sums.gate_k.to(call.k.dtype)
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

    call: Call
    result: Result
    dout: Tensor
    row0: int
    rows: int

    def room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """For all heads."""
        b, h = self.call.q.shape[:2]
        return torch.empty(b, h, *shape, dtype=dtype, device=self.call.q.device)

    def backward(self, sums: Sums, grads: Gradients) -> None:
        """Fills in its rows of dq and adds to the sums; the last chunk fills in dk and dv."""
        call, tiles = self.call, self.call.choice
        (b, _, i, _), (hk, j) = call.q.shape, call.k.shape[1:3]
        counting, plain = tiles.backward_k[0], tiles.backward_k_plain[0]
        behind = i - self.row0 - self.rows
        edges = max(1, triton.cdiv(j - behind if call.causal else j, counting.N))
        shared = call.shared() | {
            "L": table_logits(call, self.row0, self.rows),
            "dout": self.dout,
            "lse": self.result.lse,
            "D_rows": self.room(i),
            "edge_count": self.room(edges, self.rows, dtype=torch.int32),
            "edge_lift": self.room(edges, self.rows),
            "counts_from": self.room(triton.cdiv(self.rows, tiles.piece), dtype=torch.int32),
            "row0": self.row0,
            "ROWS": self.rows,
            "EDGES": edges,
            "PIECE": tiles.piece,
            "ALIGN": max(t.M for t in tiles.backward_k),
            "scale": call.scale,
            "log2_scale": call.scale * kernels.LOG2E.value,
        }
        sums.e += self._backward_q(shared, grads.q)
        parts: dict[str, Any] = {"part_k": sums.k, "part_v": sums.v}
        mine: dict[str, Any] = {"dgate": sums.k if sums.gate_k is None else sums.gate_k}
        mine |= {"ADD": self.row0 > 0, "PLAIN": plain.N}
        launch(
            "backward_k",
            tiles.backward_k,
            lambda meta: (triton.cdiv(j, meta["N"]) * b * hk,),
            shared | parts | mine,
        )
        final: dict[str, Any] = {"dk": grads.k, "dv": grads.v}
        if behind:
            final |= {"dk": sums.k, "dv": sums.v, "scale": 1.0}
        launch(
            "backward_k_plain",
            tiles.backward_k_plain,
            lambda meta: (triton.cdiv(j, meta["N"]) * b * hk,),
            shared | parts | final,
        )

    def _backward_q(self, shared: dict[str, Any], dq: Tensor) -> Tensor:
        """dq; and this chunk's gradient of the table, in float32."""
        call, P = self.call, self.call.last + 1
        b, h = call.q.shape[:2]
        rounded = self.room(self.rows, P, dtype=call.q.dtype)
        launch(
            "backward_q",
            call.choice.backward_q,
            lambda meta: (triton.cdiv(self.rows, meta["M"]) * b * h,),
            shared
            | {
                "e": call.e,
                "out": self.result.out,
                "residue": self.result.residue,
                "count": self.result.count,
                "start": self.result.start,
                "dq": dq,
                "dL": self.room(self.rows, call.width),
                "dL_rounded": rounded,
                "P": P,
                "BP": 32 if call.q.element_size() * block(call.q) > 256 else 64,
                "e_h": call.e.stride(0) if call.e.ndim == 3 else 0,
                "e_p": call.e.stride(-2),
            },
        )
        its_q = call.q[:, :, self.row0 : self.row0 + self.rows]
        return _table_gradient(rounded, its_q, per_head=call.e.ndim == 3)


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


# -- behind `xcope.ops.cope.operator` ------------------------------------------------------------


def call_of(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, mask: Tensor | None,
    documents: Tensor | None, scale: float, causal: bool, sharpness: float,
) -> Call:  # fmt: skip
    """The tensors with a contiguous last dimension, the table in their dtype."""
    q, k, v = (dense(t) for t in (q, k, v))
    return Call(
        q=q,
        k=k,
        v=v,
        e=e.to(q.dtype).contiguous(),
        gate_k=None if gate_k is None else dense(gate_k),
        mask=mask,
        documents=None if documents is None else spans(documents, q.shape[2]),
        scale=scale,
        causal=causal,
        sharpness=sharpness,
    )


def dense(t: Tensor) -> Tensor:
    """With a contiguous last dimension, and no element of a head further than 31 bits can say."""
    near = t.shape[2] * t.stride(2) < 2**31
    return t if t.stride(-1) == 1 and near else t.contiguous()


def spans(cu_seqlens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of each of n tokens, where its document begins and where it ends; (n), int32."""
    # edges that end too early were not noticed on a GPU: what is behind them is the last document's
    at = document_of(cu_seqlens, n).clamp(max=max(len(cu_seqlens) - 2, 0))
    return cu_seqlens[at].int(), cu_seqlens[at + 1].int()


def run(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None, head_mix: Tensor | None,
    mask: Tensor | None, documents: Tensor | None, vectors: Sequence[Tensor], form: str,
    scale: float, causal: bool, sharpness: float,
) -> Saved:  # fmt: skip
    """out (b h i dv), and for the backward lse, residue, count and start, see `Result`."""
    result = forward(call_of(q, k, v, e, gate_k, mask, documents, scale, causal, sharpness))
    return result.out, result.lse, result.residue, result.count, result.start


def fake(q: Tensor, v: Tensor) -> Saved:
    """Of the shapes and dtypes that `run` gives."""
    b, h, i, _ = q.shape
    return (
        q.new_empty(b, h, i, v.shape[-1]),
        q.new_empty(b, h, i, dtype=torch.float32),
        q.new_empty(b, h, i, v.shape[-1] if PIECES[q.dtype] else 0),
        q.new_empty(b, h, i, dtype=torch.int32),
        q.new_empty(b, h, i, dtype=torch.int32),
    )


def run_backward(
    dout: Tensor, saved: Saved, q: Tensor, k: Tensor, v: Tensor, e: Tensor, gate_k: Tensor | None,
    head_mix: Tensor | None, mask: Tensor | None, documents: Tensor | None,
    vectors: Sequence[Tensor], form: str, scale: float, causal: bool, sharpness: float,
    of_vectors: bool,
) -> list[Tensor]:  # fmt: skip
    """See `xcope.ops.cope.operator.cope_backward`."""
    out, lse, residue, count, start = saved
    call = call_of(q, k, v, e, gate_k, mask, documents, scale, causal, sharpness)
    try:
        grads = backward(call, Result(out, residue, lse, count, start), dout.contiguous())
    except OutOfResources as error:
        warn(WHAT, f"no tiles fit: {error}")
        return backward_by_tiles(
            dout, q, k, v, e, gate_k, mask, documents, scale, causal, sharpness
        )  # fmt: skip
    return [
        grads.q,
        grads.k,
        grads.v,
        grads.e.to(e.dtype),
        q.new_empty(0) if grads.gate_k is None else grads.gate_k,
        q.new_empty(0),  # of head_mix
    ]


def cope_attention_kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_emb: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool,
    sharpness: float,
    gate_k: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """Arguments as in `xcope.cope_attention`, already checked, of which the kernels take all.

    Raises:
        triton.runtime.errors.OutOfResources: no tiles fit on this GPU.
    """
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    tensors = (q, k, v, pos_emb, gate_k)
    if few_queries(*tensors) and not torch.compiler.is_compiling():
        return forward(call_of(*tensors, mask, cu_seqlens, scale, causal, sharpness)).out
    out, *_ = cope(*tensors, None, mask, cu_seqlens, [], "", scale, causal, sharpness, "triton")
    return cast(Tensor, out)
