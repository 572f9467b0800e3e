"""What `xcope.inspect.trace` found, as named tensors.

Shape notation: b batch, h query heads, i queries, j keys. Learned memories stand before the
tokens, so that queries are the last i of the keys; query ``i`` of ``n`` is key ``j_total − n + i``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerTrace:
    """One self-attention layer, all tensors on the CPU.

    ``attention = softmax(logits + bias)`` over the keys that are seen, unless a flag of the decoder
    gives attention another softmax.

    Args:
        schemes: label of each head's schemes, ``("cope(max_pos=64)", …)``.
        logits: scale · q·k, of turned queries and keys where a scheme turns them, (b h i j).
        seen: bool, whether the query may attend to the key, (b h i j).
        attention: (b h i j), 0 where not seen.
        bias: all that is added to the logits, from places and from CoPE's table, (b h i j), or
            (h i j) where it is the same for every row of the batch; None: nothing is added.
        gates: CoPE's g_ij, (b h i j), 0 where not seen, NaN in heads without CoPE; None: no head
            has it.
        positions: CoPE's p_ij, as ``gates``.
        max_pos: size of each head's table; None in heads without CoPE.
    """

    schemes: tuple[str, ...]
    logits: Tensor
    seen: Tensor
    attention: Tensor
    bias: Tensor | None
    gates: Tensor | None
    positions: Tensor | None
    max_pos: tuple[int | None, ...]

    @property
    def saturated(self) -> Tensor | None:
        """bool (b h i j): seen keys whose position is the table's last, p_ij ≥ max_pos − 1."""
        if self.positions is None:
            return None
        last = torch.tensor([torch.inf if p is None else p - 1 for p in self.max_pos])
        return (self.positions >= last[:, None, None]) & self.seen

    @property
    def named(self) -> dict[str, Tensor]:
        """Name → tensor, of those that the layer has."""
        names = ("logits", "seen", "attention", "bias", "gates", "positions", "saturated")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True)
class Trace:
    """What a model computed on some texts; in a notebook it shows itself.

    Args:
        ids: the tokens, (b n) int64.
        labels: how each token of each text is called.
        layers: the self-attention layers, first one first.
    """

    ids: Tensor
    labels: tuple[tuple[str, ...], ...]
    layers: tuple[LayerTrace, ...]

    def key_labels(self, row: int = 0) -> tuple[str, ...]:
        """Labels of the keys of a text: ``mem1``, … for learned memories, then the tokens."""
        memories = self.layers[0].logits.shape[-1] - self.ids.shape[1]
        return (*(f"mem{m + 1}" for m in range(memories)), *self.labels[row])

    def _repr_html_(self) -> str:
        from xcope.inspect.notebook import as_html  # noqa: PLC0415  it knows traces

        return as_html(self)
