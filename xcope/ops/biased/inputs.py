"""What attention with an index bias is given: one record, from the public function to the operator.

The operator (`xcope.ops.biased.operator`) alone takes it apart, as PyTorch's operators take tensors
and numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from xcope.ops.biased.terms import Terms, check_bias, named, replaced
from xcope.ops.documents import check_documents
from xcope.ops.inputs import check_attention


@dataclass(frozen=True, kw_only=True)
class BiasedInputs:
    """Tensors and options of one call; see `xcope.ops.biased.biased_attention`.

    Args:
        q: (b h i d).
        k: (b hk j d).
        v: (b hk j dv).
        bias: of the logits, or None.
        scale: of the logits, before the bias.
        mask: True where a key may be attended: (b j), or what broadcasts to (b h i j).
        causal: query i sees keys up to its own place.
        cu_seqlens: (m + 1), where each of m packed documents begins, and i.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Terms | None
    scale: float
    mask: Tensor | None = None
    causal: bool = True
    cu_seqlens: Tensor | None = None

    def check(self) -> None:
        """Raise a `FlagError` unless shapes, dtypes and devices fit each other."""
        check_attention(self.q, self.k, self.v, self.mask)
        if self.bias is not None:
            check_bias(self.bias, self.q, self.k)
        if self.cu_seqlens is not None:
            check_documents(self.cu_seqlens, self.q, self.k)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name: q, k, v and the vectors of the bias."""
        vectors = {} if self.bias is None else named(self.bias)
        return {"q": self.q, "k": self.k, "v": self.v} | vectors

    def of(self, tensors: Mapping[str, Tensor]) -> BiasedInputs:
        """The same call of other `tensors`."""
        bias = self.bias
        if bias is not None:
            bias = replaced(bias, {name: tensors[name] for name in named(bias)})
        return replace(self, q=tensors["q"], k=tensors["k"], v=tensors["v"], bias=bias)
