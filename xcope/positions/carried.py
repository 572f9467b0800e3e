"""What schemes share whose queries are carried back over the tokens, as `path` and `wall`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.biased import dense
from xcope.ops.carried import carried_attention, moved
from xcope.ops.terms import Separable
from xcope.positions.base import AttendInputs, AttendModule, Scheme, Slot
from xcope.positions.forgetting import Forgetting


class CarriedQueries(AttendModule):
    """Attention whose queries are carried back over the tokens, with or without forgetting.

    Args:
        dim: of the decoder.
        heads: of the decoder.
        forget_bias_init: where the forget gates' bias begins; None: nothing is forgotten.
        forget_scaled: what is forgotten is multiplied with the scale of the logits.
    """

    kind: ClassVar[str]
    """Of `xcope.ops.carried.carried_attention`."""
    gate_keys = "keys"
    remembers = True
    takes_sink = True

    def __init__(
        self, dim: int, heads: int, forget_bias_init: float | None, forget_scaled: bool = False
    ) -> None:
        super().__init__()
        self.forgetting: Forgetting | None = None
        if forget_bias_init is not None:
            self.forgetting = Forgetting(dim, heads, forget_bias_init)
        self.forget_scaled = forget_scaled

    @abstractmethod
    def of_token(self, x: Tensor) -> Tensor:
        """What is kept of each token for `moves`: (b h n c), at least float32; 0 means nothing.

        Args:
            x: (b n dim).
        """

    def moves(self, kept: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """What tokens do to queries, see `xcope.ops.carried.inputs.CarriedInputs`.

        Args:
            kept: of all keys, (b h j c).
            cu_seqlens: of packed documents.
        """
        return kept

    def remember(self, x: Tensor) -> Tensor:
        """See `AttendModule`: what `of_token` keeps, and then log f."""
        kept = self.of_token(x)
        if self.forgetting is None:
            return kept
        return torch.cat((kept, self.forgetting.remember(x)[..., None]), dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`; O(n d) memory."""
        if not inputs.causal and q.shape[2] > 1:  # keys in any order: by definition
            return super().attend(q, k, v, replace(inputs, gate_k=k))
        moves, forgotten = self._read(inputs, q.shape[2], k.shape[2])
        return carried_attention(
            self.kind,
            q,
            k,
            v,
            moves,
            scale=inputs.scale,
            mask=inputs.mask,
            bias=inputs.bias if forgotten is None else forgotten,
            cu_seqlens=inputs.cu_seqlens,
            sink=inputs.sink,
        )

    def forward(self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs) -> Tensor:
        """See `AttendModule`."""
        keys = logits if inputs.gate_k is None else inputs.gate_k
        moves, forgotten = self._read(replace(inputs, heads=None), q.shape[2], keys.shape[2])
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            added = inputs.scale * moved(self.kind, q.to(wide), keys.to(wide), moves, seen)
        if forgotten is not None:
            added = added + dense(forgotten)
        return added.to(torch.promote_types(added.dtype, logits.dtype))

    def _read(self, inputs: AttendInputs, i: int, j: int) -> tuple[Tensor, Separable | None]:
        """Moves (b h j c), those of keys of no token do nothing; the bias of what is forgotten."""
        kept = inputs.remembered
        if kept is None:
            raise ValueError(f"{self.kind} attention was given nothing that tokens left behind")
        forgotten = None
        if self.forgetting is not None:
            kept, log_f = kept[..., :-1], kept[..., -1]
            log_f = log_f * inputs.scale if self.forget_scaled else log_f
            forgotten = self.forgetting.terms(log_f, i)
        moves = self.moves(kept, inputs.cu_seqlens)
        if inputs.heads is not None:
            moves = moves[:, inputs.heads]
            forgotten = None if forgotten is None else forgotten.of_heads(inputs.heads)
        if moves.shape[2] < j:
            moves = F.pad(moves, (0, 0, j - moves.shape[2], 0))
        return moves, forgotten


@dataclass(frozen=True, kw_only=True)
class CarriedScheme(Scheme):
    """A scheme by which queries are carried back over the tokens.

    Args:
        forget: add the bias of forgetting attention.
        forget_bias_init: where its gates' bias begins; more forgets less.
    """

    slot: ClassVar[Slot | None] = Slot.ATTEND

    forget: bool = False
    forget_bias_init: float = 5.0

    def __post_init__(self) -> None:
        """See `Scheme`."""
        super().__post_init__()
        excluded: dict[Slot | str, str] = {
            "pope": "PoPE's queries are twice as wide as the channels that tokens act on",
        }
        if self.forget:
            excluded[Slot.BIAS] = "what is forgotten is itself a bias of the logits"
        object.__setattr__(self, "excludes", excluded)

    @property
    def gates_begin(self) -> float | None:
        """``forget_bias_init``, or None if nothing is forgotten."""
        return self.forget_bias_init if self.forget else None
