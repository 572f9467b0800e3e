"""What attention with carried queries is given: one record, from the public functions to the walk.

Shape notation as in `xcope.ops.carried`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xcope.ops.documents import check_documents
from xcope.ops.inputs import autocast, check_attention
from xcope.ops.sinks import check_sink
from xcope.ops.terms import Terms, cast_to, check_bias, replaced


@dataclass(frozen=True, kw_only=True)
class CarriedInputs:
    """Tensors and options of one run.

    Args:
        kind: what a token does to the queries that are carried back over it: ``path``, ``wall``.
        q: (b h i d).
        k: (b hk j d).
        v: (b hk j dv).
        moves: (b h j c), of each token: for ``path`` w, of any length, and then β, c = d + 1;
            for ``wall`` the logarithms of the decays, c = d.
        bias: of the logits, or None.
        scale: of the logits, before the bias.
        mask: bool, True where a key may be attended: broadcasts to (b h i j), 4 dimensions.
        cu_seqlens: (m + 1), where each of m packed documents begins, and j.
        sink: a logit of each head that takes its share of attention, (h), see `xcope.ops.sinks`.
    """

    kind: str
    q: Tensor
    k: Tensor
    v: Tensor
    moves: Tensor
    bias: Terms | None
    scale: float
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    sink: Tensor | None = None

    @classmethod
    def checked(
        cls, kind: str, q: Tensor, k: Tensor, v: Tensor, moves: Tensor, *, scale: float | None,
        mask: Tensor | None, bias: Terms | None, cu_seqlens: Tensor | None, sink: Tensor | None,
    ) -> CarriedInputs:  # fmt: skip
        """The record of a user's arguments, in autocast's dtype where that is on.

        Args:
            scale: None: ``d ** -0.5``.
            mask: (b j), or 4 dimensions.

        Raises:
            FlagError: shapes, dtypes or devices that do not fit.
        """
        q, k, v = autocast(q, k, v)
        check_attention(q, k, v, mask)
        if bias is not None:
            check_bias(bias, q, k)
        if sink is not None:
            check_sink(sink, q)
        if cu_seqlens is not None:
            check_documents(cu_seqlens, q, k)
        return cls(
            kind=kind,
            q=q,
            k=k,
            v=v,
            moves=moves,
            bias=bias,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            mask=mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask,
            cu_seqlens=cu_seqlens,
            sink=sink,
        )

    def widened(self) -> CarriedInputs:
        """In float32, or float64 where q is, and with a key head for each query head."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        groups = self.q.shape[1] // self.k.shape[1]
        given = self.carried() | ({} if self.sink is None else {"sink": self.sink})
        cast: dict[str, Any] = {name: t.to(wide) for name, t in given.items()}
        if groups > 1:
            for name in ("k", "v"):
                cast[name] = cast[name].repeat_interleave(groups, dim=1)
        if self.bias is not None:
            cast["bias"] = cast_to(self.bias, cast["q"])
        return replace(self, **cast)

    def carried(self) -> dict[str, Tensor]:
        """q, k, v and moves by name."""
        return {"q": self.q, "k": self.k, "v": self.v, "moves": self.moves}

    def named(self) -> dict[str, Tensor]:
        """The tensors that may have gradients, by name: these, the sink, the bias' vectors."""
        sink = {} if self.sink is None else {"sink": self.sink}
        return self.carried() | sink | ({} if self.bias is None else self.bias.__dict__)

    def with_named(self, tensors: Mapping[str, Tensor]) -> CarriedInputs:
        """The inverse of `named`: the same with these tensors."""
        cut: dict[str, Any] = {name: tensors[name] for name in self.carried()}
        cut["sink"] = tensors.get("sink")
        if self.bias is not None:
            cut["bias"] = replaced(self.bias, {name: tensors[name] for name in self.bias.__dict__})
        return replace(self, **cut)


EPS = 1e-6
"""Added to |w|²."""
