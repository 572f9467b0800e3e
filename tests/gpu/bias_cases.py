"""Attention with an index bias in each of its forms: output, gradients to q, k, v and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from gpu.cope_cases import edges, mask_of
from torch import Tensor

from benchmarks.gpu.compare import Compared, Named, held_to_float64, output_and_gradients
from benchmarks.gpu.workloads import index_bias
from xcope.ops.biased import Terms, biased_attention
from xcope.ops.terms import WITHOUT_GRADIENT, named, replaced


@dataclass(frozen=True, kw_only=True)
class BiasCase:
    """One call of `xcope.ops.biased.biased_attention`.

    Args:
        scheme: whose bias it is.
        j: keys; 0: as many as queries.
        mask: none, or ``keys``: padding (b j).
        documents: lengths of packed documents.
    """

    name: str
    scheme: str
    dtype: str = "bfloat16"
    b: int = 1
    h: int = 4
    hk: int = 4
    i: int = 500
    j: int = 0
    d: int = 64
    mask: str = ""
    documents: tuple[int, ...] = ()
    backend: str = "flex"
    device: str = "cuda"
    part: ClassVar[str] = "flex"

    @property
    def keys(self) -> int:
        """j."""
        return self.j or self.i

    @property
    def family(self) -> str:
        """One of its own: each is compiled by itself, so they go side by side."""
        return f"{self.name} {self.dtype}"

    def compared(self) -> Iterator[Compared]:
        """See `Case`."""
        terms, options = self._terms(), self._options()
        vectors = {n: t for n, t in named(terms).items() if t.is_floating_point()}
        wanted = [n for n in vectors if n not in WITHOUT_GRADIENT]

        def run(backend: str, given: Named) -> Named:
            wide = torch.promote_types(given["q"].dtype, torch.float32)

            def attention(q: Tensor, k: Tensor, v: Tensor, **learned: Tensor) -> Tensor:
                fixed = {n: t.to(wide) for n, t in vectors.items()}
                bias = replaced(terms, fixed | learned)
                return biased_attention(q, k, v, bias, **options, backend=backend)

            return output_and_gradients(attention, given)

        yield from held_to_float64(self, run, self._given() | {n: vectors[n] for n in wanted})

    def _terms(self) -> Terms:
        """Of float32 vectors."""
        places = torch.arange(self.keys, device=self.device)
        bias = index_bias(self.scheme, self.h, self.d).to(self.device)
        terms = bias.terms(places[self.keys - self.i :], places, self.keys)
        return replaced(terms, {n: t.detach() for n, t in named(terms).items()})

    def _given(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = {"q": (self.h, self.i), "k": (self.hk, self.keys), "v": (self.hk, self.keys),
                  "dout": (self.h, self.i)}  # fmt: skip
        return {
            name: torch.randn(self.b, *shape, self.d, generator=generator).to(
                self.device, getattr(torch, self.dtype)
            )
            for name, shape in shapes.items()
        }

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.mask:
            options["mask"] = mask_of(self.mask, self.b, self.i, self.keys).to(self.device)
        if self.documents:
            options["cu_seqlens"] = edges(self.documents).to(self.device)
        return options


FORMS = {"Separable": "alibi", "ByDistance": "kerple", "Piecewise": "fire"}
"""A scheme for each form of bias."""


def bias_cases(device: str, backend: str) -> list[BiasCase]:
    """Every form in two dtypes, then what else there is."""
    found = [
        BiasCase(name=f"{form} ({scheme})", scheme=scheme, dtype=dtype)
        for form, scheme in FORMS.items()
        for dtype in ("bfloat16", "float32")
    ]
    for form, scheme in FORMS.items():
        found.append(
            BiasCase(name=f"{form}, packed documents", scheme=scheme, documents=(1, 200, 7, 292))
        )
    found += [
        BiasCase(name="Separable, padded keys, grouped", scheme="alibi", mask="keys", b=2, hk=2),
        BiasCase(name="ByDistance, fewer queries than keys", scheme="t5", i=150, j=500),
    ]
    return [replace(case, device=device, backend=backend) for case in found]


def small(case: BiasCase) -> BiasCase:
    """The same with few tokens, for quick runs."""
    documents = (5, 1, 27) if case.documents else ()
    return replace(case, i=min(case.i, 33), j=min(case.j, 70), d=16, documents=documents)
