"""CoPE attention in all its options, a few at a time: output and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.compare import Compared, Named, held_to_float64, output_and_gradients
from xcope.ops.cope import cope_attention

SHIFT = {"about 0.5": 0.0, "near 0": -1.0, "near 1": 1.0}
"""Where gates are → what keys are shifted by; queries go to 1 where it is not 0."""


@dataclass(frozen=True, kw_only=True)
class CopeCase:
    """One call of `xcope.cope_attention`.

    Shape notation as there. Inputs are random, of the dtype; no document or mask is random.

    Args:
        j: keys; 0: as many as queries.
        dv: 0: as d.
        gates: a key of ``SHIFT``.
        mask: none; ``keys``: padding (b j); ``rows``: (b 1 i j), some rows of which see nothing.
        documents: lengths of packed documents.
        float_table: the table in float32 whatever the dtype, as a parameter under autocast.
        as_projected: q, k and v lie as (b n h d), as projections leave them.
        gradients: False: only the output, under no_grad.
    """

    name: str
    dtype: str = "bfloat16"
    b: int = 1
    h: int = 4
    hk: int = 4
    i: int = 1000
    j: int = 0
    d: int = 64
    dv: int = 0
    max_pos: int = 64
    gates: str = "about 0.5"
    mask: str = ""
    documents: tuple[int, ...] = ()
    causal: bool = True
    gate_k: bool = False
    soft_onehot: bool = False
    per_head: bool = False
    float_table: bool = False
    as_projected: bool = False
    gradients: bool = True
    backend: str = "triton"
    device: str = "cuda"
    part: ClassVar[str] = "cope"

    @property
    def keys(self) -> int:
        """j."""
        return self.j or self.i

    @property
    def family(self) -> str:
        """What kernels are compiled for."""
        flags = (self.causal, self.mask, bool(self.documents), self.gate_k, self.soft_onehot)
        return str((self.dtype, self.d, self.dv, *flags, self.gradients))

    def compared(self) -> Iterator[Compared]:
        """See `Case`."""
        options = self._options()

        def run(backend: str, given: Named) -> Named:
            def attention(**tensors: Any) -> Tensor:
                return cope_attention(**tensors, **options, backend=backend)

            if self.gradients:
                return output_and_gradients(attention, given)
            with torch.no_grad():
                return {"out": attention(**{n: t for n, t in given.items() if n != "dout"})}

        given = self._given()
        yield from held_to_float64(self, run, given, self._flash(given))

    def _flash(self, given: Named) -> dict[str, float]:
        """The errors of PyTorch's flash attention, where it does such a call without positions."""
        square = self.causal and self.gradients and self.keys == self.i and not self.dv
        if self.device != "cuda" or self.dtype == "float32" or not square:
            return {}
        groups = self.h // self.hk
        mine = {name: given[name] for name in ("q", "k", "v", "dout")}
        mine |= {name: mine[name].repeat_interleave(groups, 1) for name in ("k", "v")}

        def errors(exact: Named, found: Named) -> dict[str, float]:
            return {n: float((found[n].double() - t).norm() / t.norm()) for n, t in exact.items()}

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        with sdpa_kernel(SDPBackend.MATH):
            exact = output_and_gradients(attention, {n: t.double() for n, t in mine.items()})
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return errors(exact, output_and_gradients(attention, mine))

    def _given(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        dv, heads = self.dv or self.d, (self.b, self.hk, self.keys)
        given = {"q": random(self.b, self.h, self.i, self.d), "k": random(*heads, self.d)}
        given["v"] = random(*heads, dv)
        if self.gate_k:
            given["gate_k"] = random(*heads, self.d)
        if shift := SHIFT[self.gates]:
            selecting = "gate_k" if self.gate_k else "k"
            given["q"] = 1 + 0.2 * given["q"]
            given[selecting] = shift + 0.2 * given[selecting]
        tables = (self.h,) if self.per_head else ()
        given["pos_emb"] = 0.1 * random(*tables, self.max_pos, self.d)
        given["dout"] = random(self.b, self.h, self.i, dv)
        return {name: self._placed(name, t) for name, t in given.items()}

    def _placed(self, name: str, t: Tensor) -> Tensor:
        wide = name == "pos_emb" and self.float_table
        t = t.to(self.device, torch.float32 if wide else getattr(torch, self.dtype))
        if self.as_projected and name in ("q", "k", "v"):
            t = t.transpose(1, 2).contiguous().transpose(1, 2)
        return t

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"causal": self.causal, "soft_onehot": self.soft_onehot}
        if self.mask:
            options["mask"] = mask_of(self.mask, self.b, self.i, self.keys).to(self.device)
        if self.documents:
            options["cu_seqlens"] = edges(self.documents).to(self.device)
        return options


def mask_of(kind: str, b: int, i: int, j: int) -> Tensor:
    """``keys``: (b j), padded left, right and in between; ``rows``: (b 1 i j), some all False."""
    if kind == "keys":
        mask = torch.ones(b, j, dtype=torch.bool)
        mask[0, -(j // 7) :] = False
        mask[-1, : j // 9] = mask[-1, j // 3 : j // 2] = False
        return mask
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(b, 1, i, j, generator=generator) < 0.7
    mask[:, :, i // 5 : i // 4] = mask[:, :, -1] = False
    return mask


def edges(documents: tuple[int, ...]) -> Tensor:
    """``cu_seqlens``: where each document begins, and the end of the last; int32."""
    return torch.tensor([0, *documents]).cumsum(0).to(torch.int32)


def cope_cases(device: str, backend: str) -> list[CopeCase]:
    """What is compared on a GPU; few families, because each is compiled."""
    return [replace(case, device=device, backend=backend) for case in [*_plain(), *_options()]] + [
        CopeCase(name="decoding, 4096 keys", i=1, j=4096, gradients=False, backend="auto",
                 device=device),
    ]  # fmt: skip


def small(case: CopeCase) -> CopeCase:
    """The same with few tokens, for quick runs."""
    i, j = min(case.i, 33), min(case.j, 70)
    documents = (5, 1, i - 6) if case.documents else ()
    h, hk = min(case.h, 4), min(case.hk, 4)
    max_pos = case.max_pos if case.max_pos < 100 else 100
    return replace(case, i=i, j=j, h=h, hk=hk, d=min(case.d, 80), max_pos=max_pos,
                   documents=documents)  # fmt: skip


def _plain() -> Iterator[CopeCase]:
    """Head dimensions, dtypes, tables, gates, lengths."""
    bf16 = CopeCase(name="")
    for gates in SHIFT:
        yield replace(bf16, name=f"gates {gates}", b=2, gates=gates)
    for max_pos, gates in ((1, "about 0.5"), (1024, "about 0.5"), (4096, "near 1")):
        yield replace(bf16, name=f"max_pos {max_pos}, gates {gates}", max_pos=max_pos, gates=gates)
    yield replace(bf16, name="several chunks of queries", h=32, hk=8, i=1024, max_pos=4096)
    yield replace(bf16, name="a table for each head", per_head=True)
    yield replace(bf16, name="table in float32", float_table=True, i=513)
    yield replace(bf16, name="grouped keys", hk=2, b=2, i=513)
    yield replace(bf16, name="one key head, as projected", hk=1, as_projected=True)
    yield replace(bf16, name="fewer queries than keys", i=200, j=1000)
    for dtype in ("float16", "float32"):
        for gates in ("about 0.5", "near 0"):
            yield replace(bf16, name=f"gates {gates}", dtype=dtype, gates=gates, i=513)
    for dtype, d, max_pos in (
        ("bfloat16", 16, 64),
        ("bfloat16", 80, 64),
        ("bfloat16", 128, 1024),
        ("bfloat16", 256, 64),
        ("float16", 128, 64),
        ("float32", 16, 1024),
        ("float32", 128, 64),
    ):
        yield replace(bf16, name=f"d {d}, max_pos {max_pos}", dtype=dtype, d=d, max_pos=max_pos)


def _options() -> Iterator[CopeCase]:
    """What changes the work."""
    bf16 = CopeCase(name="", i=513)
    documents = (1, 300, 5, 64, 630)
    yield replace(bf16, name="padded keys", b=2, mask="keys", i=1000)
    yield replace(bf16, name="rows that see nothing", b=2, mask="rows")
    yield replace(bf16, name="packed documents", documents=documents, i=1000)
    yield replace(bf16, name="packed documents, gates near 0", documents=documents, i=1000,
                  gates="near 0", max_pos=1024)  # fmt: skip
    yield replace(bf16, name="not causal", causal=False)
    yield replace(bf16, name="gates from keys of their own", gate_k=True, hk=2)
    yield replace(bf16, name="soft one-hot", soft_onehot=True, i=256, h=2, hk=2)
    yield replace(bf16, name="packed documents, gates from keys of their own", dtype="float32",
                  documents=(200, 1, 312), gate_k=True)  # fmt: skip
    yield replace(bf16, name="padded keys, values narrower", dtype="float32", mask="keys", dv=32)
    yield replace(bf16, name="rows that see nothing, not causal, gates from keys of their own",
                  dtype="float16", mask="rows", causal=False, gate_k=True)  # fmt: skip
