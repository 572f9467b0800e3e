"""What attention with an index bias is given: one record, from the public function to the operator.

It is taken apart once, for the PyTorch operator (`xcope.ops.biased.operator`), which takes tensors
and numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from xcope.ops import windows
from xcope.ops.documents import check_documents
from xcope.ops.inputs import autocast, check_attention
from xcope.ops.sinks import check_sink
from xcope.ops.terms import Terms, check_bias, replaced


@dataclass(frozen=True, kw_only=True)
class BiasedInputs:
    """Tensors and options of one run, see `xcope.ops.biased.biased_attention`.

    Args:
        q: (b h i d).
        k: (b hk j d).
        v: (b hk j dv).
        bias: of the logits, or None.
        scale: of the logits, before the bias.
        mask: True where a key may be attended: (b j), or what broadcasts to (b h i j).
        causal: query i sees keys up to its own place.
        cu_seqlens: (m + 1), where each of m packed documents begins, and i.
        window: which keys a query sees beside that, (1 2 i) or (b 2 i), see `xcope.ops.windows`.
        sink: a logit of each head that takes its share of attention, (h), see `xcope.ops.sinks`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Terms | None
    scale: float
    mask: Tensor | None = None
    causal: bool = True
    cu_seqlens: Tensor | None = None
    window: Tensor | None = None
    sink: Tensor | None = None

    @classmethod
    def checked(
        cls, q: Tensor, k: Tensor, v: Tensor, bias: Terms | None, *, scale: float | None,
        mask: Tensor | None, causal: bool, cu_seqlens: Tensor | None,
        window: Tensor | int | None, sink: Tensor | None,
    ) -> BiasedInputs:  # fmt: skip
        """The record of a user's arguments, in autocast's dtype where that is on.

        Args:
            scale: None: ``d ** -0.5``.

        Raises:
            FlagError: shapes, dtypes or devices that do not fit.
        """
        q, k, v = autocast(q, k, v)
        check_attention(q, k, v, mask)
        if bias is not None:
            check_bias(bias, q, k)
        if cu_seqlens is not None:
            check_documents(cu_seqlens, q, k)
        if sink is not None:
            check_sink(sink, q)
        if scale is None:
            scale = q.shape[-1] ** -0.5
        return cls(
            q=q,
            k=k,
            v=v,
            bias=bias,
            scale=scale,
            mask=mask,
            causal=causal,
            cu_seqlens=cu_seqlens,
            window=windows.checked(window, q, k),
            sink=sink,
        )

    def named(self) -> dict[str, Tensor]:
        """The tensors that may have gradients, by name: q, k, v, the sink, the bias' vectors."""
        vectors = {} if self.bias is None else self.bias.__dict__
        sink = {} if self.sink is None else {"sink": self.sink}
        return {"q": self.q, "k": self.k, "v": self.v, **sink, **vectors}

    def with_named(self, tensors: Mapping[str, Tensor]) -> BiasedInputs:
        """The inverse of `named`: the same with these tensors."""
        bias = self.bias
        if bias is not None:
            bias = replaced(bias, {name: tensors[name] for name in bias.__dict__})
        q, k, v, sink = tensors["q"], tensors["k"], tensors["v"], tensors.get("sink")
        return replace(self, q=q, k=k, v=v, sink=sink, bias=bias)
