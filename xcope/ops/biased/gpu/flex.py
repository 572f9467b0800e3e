"""Attention with an index bias by PyTorch's FlexAttention: one compiled kernel, for CUDA.

The bias is a ``score_mod`` made of the same vectors, with gradients to them. Causality, windows and
packed documents are a block mask, so that tiles without a visible pair are skipped (see
`xcope.ops.biased.gpu.flex_tiles`). Other masks are part of the ``score_mod``: as a block mask they
would have to be made again for every batch. A sink scales what comes out, by the sum of exp that
FlexAttention tells beside it.

The gradients of the vectors are gathered by atomic additions, one for each visible pair, in an
order that differs from run to run: so do their last digits.

On CPUs FlexAttention has no backward; it runs there, uncompiled and in (b h i j) memory, for
comparison only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from xcope.ops.biased.gpu.flex_tiles import Options, block_mask, options
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.reference import definition
from xcope.ops.fallback import capability, first_reason
from xcope.ops.inputs import differentiated, require
from xcope.ops.terms import ByDistance, Piecewise, Separable, Terms, named, placed
from xcope.ops.transforms import differentiable_again

Vectors = dict[str, Tensor]
Bias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Attention = Callable[..., Tensor]

DIMS = range(16, 257)  # of a head, that its kernels are made for
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# how newer versions of PyTorch are asked for log Σ exp, and older ones
LSE: dict[str, Any] = {"return_lse": True}
if hasattr(torch.nn.attention.flex_attention, "AuxRequest"):
    LSE = {"return_aux": torch.nn.attention.flex_attention.AuxRequest(lse=True)}
COPIES = 8  # of vectors with a gradient; a power of two


def refusal(q: Tensor, v: Tensor) -> str | None:
    """Why FlexAttention's kernels cannot take these inputs; None: they can, on CUDA."""
    width = next((t.shape[-1] for t in (q, v) if t.shape[-1] not in DIMS), None)
    reasons = {
        f"the inputs are {q.dtype}": q.dtype not in DTYPES,
        f"a head has {width} dimensions, not {DIMS.start} to {DIMS.stop - 1}": width is not None,
    }
    return first_reason(q, reasons)


def biased_attention_flex(inputs: BiasedInputs) -> Tensor:
    """Compute by FlexAttention; on CPUs in (b h i j) memory and without gradients.

    Raises:
        FlagError: gradients are wanted on a CPU.
    """
    q, k, v, bias, mask = inputs.q, inputs.k, inputs.v, inputs.bias, inputs.mask
    on_cuda = q.device.type == "cuda"
    require(
        on_cuda or not differentiated(*inputs.named().values()),
        "backend",
        f"backend='flex' has no backward on {q.device.type} devices: use backend='tiled'",
    )
    (h, i, d), (hk, j) = q.shape[1:], k.shape[1:3]
    vectors = {} if bias is None else prepared(bias, h, free=j - placed(bias))
    form, dim = "" if bias is None else type(bias).__name__, max(d, v.shape[-1])
    bare, heavy = bias is None and mask is None, form == Piecewise.__name__
    kind = Kind(
        form=form,
        scale=inputs.scale,
        options=options(q.dtype, dim, bare, heavy, capability(q)) if on_cuda else (),
        inputs=(q.dtype, h, hk, d, v.shape[-1]),
        vectors=tuple((name, t.ndim) for name, t in vectors.items()),
        masked=None if mask is None else tuple(n > 1 for n in mask.shape),
        blocked=(
            inputs.causal,
            inputs.cu_seqlens is not None,
            i == j,
            None if inputs.window is None else len(inputs.window) > 1,
        ),
        sink=inputs.sink is not None,
        differentiated=torch.is_grad_enabled(),
    )
    attention = compiled(kind) if compiles(q) else attention_of(kind)
    blocks = block_mask(i, j, inputs.causal, inputs.cu_seqlens, q.device, inputs.window)
    out = attention(q, k, v, mask, vectors, blocks, inputs.sink)
    return differentiable_again(out, partial(definition, inputs), *inputs.named().values())


class Kind(NamedTuple):
    """What calls have in common that one function is compiled for: all but lengths and batch.

    Args:
        form: of the bias, "" for none.
        scale: of the logits.
        options: of the kernels.
        inputs: dtype, query heads, key heads, dimensions of keys and values.
        vectors: names and numbers of dimensions, as `prepared` makes them.
        masked: of the mask, which dimensions it has, of those that it may have.
        blocked: causal, in documents, as many queries as keys, in windows (None: in none) of each
            row of the batch.
        sink: whether there is one.
        differentiated: whether there may be gradients.
    """

    form: str
    scale: float
    options: Options
    inputs: tuple[torch.dtype, int, int, int, int]
    vectors: tuple[tuple[str, int], ...]
    masked: tuple[bool, ...] | None
    blocked: tuple[bool, bool, bool, bool | None]
    sink: bool
    differentiated: bool


def attention_of(kind: Kind) -> Attention:
    """FlexAttention of this kind."""
    form, scale, chosen = kind.form, kind.scale, dict(kind.options)
    grouped = kind.inputs[1] != kind.inputs[2]

    def attention(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, vectors: Vectors,
        blocks: BlockMask | None, sink: Tensor | None,
    ) -> Tensor:  # fmt: skip
        run: Any = flex_attention  # whose options are typed otherwise in each version
        found = run(
            q,
            k,
            v,
            score_mod=score_mod(form, vectors, mask),
            block_mask=blocks,
            scale=scale,
            enable_gqa=grouped,
            kernel_options=chosen,
            **({} if sink is None else LSE),
        )
        if sink is None:
            return found  # type: ignore[no-any-return]
        out: Tensor = found[0]
        lse = getattr(found[1], "lse", found[1])
        share: Tensor = (lse - sink.to(lse.dtype)[:, None]).sigmoid()
        return (out * share[..., None]).to(out.dtype)

    return attention


def compiles(q: Tensor) -> bool:
    """Whether it is for us to compile; not on CPUs, nor in what is compiled already."""
    return q.device.type == "cuda" and not torch.compiler.is_compiling()


@cache
def compiled(kind: Kind) -> Attention:
    """`attention_of`, with code and a name of its own.

    By code, Dynamo counts how often it has compiled, and gives up after eight times; by name, it
    takes for dynamic what has differed between two calls.
    """
    attention = attention_of(kind)
    code = attention.__code__.replace(co_name=f"attention_{crc32(repr(kind).encode()):x}")
    own = FunctionType(code, attention.__globals__, closure=attention.__closure__)
    return torch.compile(own, fullgraph=True)


# -- the bias ------------------------------------------------------------------------------------


def number(n: int, device: torch.device) -> Tensor:
    """As a tensor: for another int, Dynamo would compile again."""
    return torch.full((), n, dtype=torch.int32, device=device)


def prepared(terms: Terms, heads: int, free: int = 0) -> Vectors:
    """The vectors of a bias, float32 and int32, as kernels can take them.

    Those with a gradient have a dimension of ``COPIES`` before all others, and one of heads: a
    view, but gradients have all of it, so that fewer of them are added to the same number, and
    Inductor, which cannot add to a vector of one dimension, can. Beside them are numbers: "last",
    the last distance of a table, and "free", how many keys have no place, if there are any.
    """
    if isinstance(terms, Separable) and not free and terms.row.requires_grad:
        terms = _without_gradient_of_rows(terms)
    vectors = {}
    for name, t in named(terms).items():
        if name in ("q_pos", "k_pos"):
            vectors[name] = t.clamp(-(2**29), 2**29).int()
        elif name == "knots":
            vectors[name] = t.detach().float()
        else:
            of_head = t if name not in ("warp", "shrink") else t[..., None, :]
            shape = (COPIES, *of_head.shape[:-2], heads, of_head.shape[-1])
            vectors[name] = of_head.float().expand(shape)
    table = vectors.get("table", vectors.get("warp"))
    if table is not None:
        vectors["last"] = number(table.shape[-1] - 1, table.device)
    if free:
        vectors["free"] = number(free, vectors[next(iter(vectors))].device)
    return vectors


def _without_gradient_of_rows(terms: Separable) -> Separable:
    """What all logits of a row have in common has a gradient of 0, which need not be gathered."""
    no = torch.zeros((), dtype=torch.bool, device=terms.row.device)
    return Separable(terms.row.detach(), terms.key + torch.where(no, terms.row.sum(), 0.0))


def score_mod(form: str, vectors: Vectors, mask: Tensor | None) -> ScoreMod | None:
    """What is done to a logit: biased, and −∞ where masked. None: nothing.

    Args:
        form: of the bias, "" for none.
        vectors: as `prepared` makes them.
        mask: (b j), or 4 dimensions that broadcast to (b h i j).
    """
    bias, free = BIASES[form](vectors) if form else None, vectors.get("free")
    if bias is None and mask is None:
        return None

    def modified(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is not None:
            added = bias(b, h, i, j if free is None else (j - free).clamp(min=0))
            score = score + (added if free is None else torch.where(j >= free, added, 0.0))
        if mask is not None:
            score = torch.where(_entry(mask, (b, h, i, j)), score, -torch.inf)
        return score

    return modified


def _entry(mask: Tensor, at: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Of a mask (b j) or one that broadcasts to (b h i j)."""
    if mask.ndim == 2:
        return mask[at[0], at[3]]
    return mask[tuple(n if size > 1 else n * 0 for n, size in zip(at, mask.shape, strict=True))]


def _separable(vectors: Vectors) -> Bias:
    row, key = vectors["row"], vectors["key"]

    def bias(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return _of_token(row, j, b, h, i) - _of_token(key, i, b, h, j)

    return bias


def _by_distance(vectors: Vectors) -> Bias:
    table = vectors["table"]

    def bias(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return table[i & (COPIES - 1), h, _distance(vectors, b, i, j)]

    return bias


def _piecewise(vectors: Vectors) -> Bias:
    slope, offset, knots = vectors["slope"], vectors["offset"], vectors["knots"]
    warp, shrink = vectors["warp"], vectors["shrink"]

    def bias(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        t = warp[i & (COPIES - 1), h, _distance(vectors, b, i, j)] * _of_token(shrink, j, b, h, i)
        segment = zero = torch.zeros_like(i)
        for s in range(len(knots)):  # a bisection would keep more in registers, and spill them
            segment = segment + (t >= knots[zero + s]).int()
        return slope[i & (COPIES - 1), h, segment] * t + offset[i & (COPIES - 1), h, segment]

    return bias


BIASES: dict[str, Callable[[Vectors], Bias]] = {
    Separable.__name__: _separable,
    ByDistance.__name__: _by_distance,
    Piecewise.__name__: _piecewise,
}
"""b_ij at a row of the batch, head, query and key; the key counted among those with places."""


def _distance(vectors: Vectors, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """δ_ij, clamped to the table."""
    q_pos, k_pos = (
        pos[at] if pos.ndim == 1 else pos[b, at]
        for pos, at in ((vectors["q_pos"], i), (vectors["k_pos"], j))
    )
    return torch.minimum((q_pos - k_pos).clamp(min=0), vectors["last"])


def _of_token(vector: Tensor, copy: Tensor, b: Tensor, h: Tensor, at: Tensor) -> Tensor:
    """An entry of (copies h n) or (copies b h n)."""
    copy = copy & (COPIES - 1)
    return vector[copy, h, at] if vector.ndim == 3 else vector[copy, b, h, at]
