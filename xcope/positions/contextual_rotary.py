"""Contextual rotary: queries and keys are turned by places that come from what tokens are.

Each token takes a step that is read off the layer's input x, and stands where the steps have led:

    p_i = Σ_{t≤i} g(x_t),  (q_2m, q_2m+1) ← R(p_i ω_m) (q_2m, q_2m+1),  ω_m = base^(−2m/dim)

so that q·k depends on p_i − p_j, the steps between key and query. With steps of 1 it is ``rotary``;
with steps of 0 or 1 it counts tokens of a kind, as CoPE does, but once for each token and not anew
for each query. Four papers have this: Zhang et al., *Group Representational Position Encoding*
(GRAPE-M, arXiv 2512.07805), Movahedi et al., *Selective Rotary Position Embedding* (arXiv
2511.17388), Rambaud et al., *MapFormer* (arXiv 2511.19279), and, with places that are no sums, Li,
Zhao, Sproat, *RePo: Language Models with Context Re-Positioning* (arXiv 2512.14391):

    GRAPE-M          places: softplus, per: layer, exclusive: true, learned_freq: true
    Selective RoPE   places: linear, per: pair, rank: 32, conv: 4, base: 500000
    MapFormer        places: linear, per: pair, rank: 2, learned_freq: true
    RePo             places: repo, p_i = f(x_i)

    softplus, sigmoid, linear   g = softplus(a), σ(a), a;  a = W x + b, or W₂ W₁ x + b with rank
    repo                        f = W₃ (silu(W₁ x) ⊙ W₂ x), of width rank, dim/8 if not given

all with ``dim: whole, layout: half_split``. ``conv: 4`` mixes a step with the three before it, each
with a weight of its own.

Here steps begin at 1 (σ: ½) whatever the token, W at 0: a fresh model turns as plain rotary does.
The authors begin elsewhere. GRAPE-M: steps of 0.001, almost no positions, and W of standard
deviation 0.5/√dim (``init_step: 0.001, init_spread: 0.5``, which is ``start: authors``; its code
sets W to 0 first, and draws it anew later). MapFormer and Selective RoPE: no b, W₁ and W₂ as
PyTorch draws them (``init_step: 0, init_spread: 0.33``); Selective RoPE brings x to length 1 first,
and draws the weights of ``conv``, which here begin with the step as it is; MapFormer's ω_m go from
2π down to 2π over the size of its maps, head by head. RePo continues from a rotary model, blends
its places in, and has them in the upper layers only (``{layers: […]}``).

Other than with ``rotary``, no places can be given or drawn at random, queries that share a key each
need a copy of it (not with ``per: layer``), and the cache holds each token's steps beside its key.
Sums are made in float64 (where the device has it), and angles are told from whole turns, so that a
long text is read as exactly as a short one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.ops.documents import document_of
from xcope.ops.rotate import angles_of, rotate_by
from xcope.positions.base import Geometry, Rotation
from xcope.positions.registry import register
from xcope.positions.rotary import TurningScheme, frequencies

STARTS = {"softplus": 1.0, "sigmoid": 0.5, "linear": 1.0, "repo": 0.0}
"""``places`` → the step with which it begins; of ``repo`` what is added to the place."""
PER = ("head", "pair", "layer")


def before_gate(places: str, step: float) -> float:
    """b for which g(b) is ``step``."""
    if places == "softplus":
        return math.log(math.expm1(step))
    return math.log(step / (1 - step)) if places == "sigmoid" else step


class ContextualAngles(Rotation):
    """The steps of one layer's tokens, and what they turn.

    Args:
        dim: of the decoder.
        heads: query heads of the group.
        turned: channels per head that turn, even.
        base: θ of the frequencies.
        places: how a step follows from x, a key of `STARTS`.
        per: one step for each head, for each pair of channels of each head, or for the layer.
        rank: width between x and the steps; None: none (``repo``: dim/8).
        conv: how many steps are mixed, the token's own included; 1: none.
        exclusive: a token's own step counts only for those after it.
        learned_freq: the logarithms of the frequencies are learned.
        init_step: the step with which all tokens begin.
        init_spread: standard deviation of what x adds to a at the start, x being of variance 1.
        half_split: pairs (m, m + turned/2) instead of (2m, 2m + 1).
    """

    remembers = True
    upstream_name = "rotation"

    inv_freq: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        turned: int,
        base: float,
        places: str,
        *,
        per: str = "head",
        rank: int | None = None,
        conv: int = 1,
        exclusive: bool = False,
        learned_freq: bool = False,
        init_step: float = 1.0,
        init_spread: float = 0.0,
        half_split: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.half_split, self.exclusive = places, half_split, exclusive
        self.each_head = per != "layer"
        self.groups = heads if self.each_head else 1
        steps = self.groups * (turned // 2 if per == "pair" else 1)
        self.log_freq = None
        if learned_freq:
            self.log_freq = nn.Parameter(frequencies(turned, base).log())
        else:
            self.add_constant("inv_freq", frequencies(turned, base))
        width = rank or max(dim // 8, 1)
        if places == "repo":
            self.gate, self.content = (nn.Linear(dim, width, bias=False) for _ in range(2))
            self.to_steps = nn.Linear(width, steps)
            nn.init.constant_(self.to_steps.bias, init_step)
        else:
            self.low_rank = None if rank is None else nn.Linear(dim, rank, bias=False)
            self.to_steps = nn.Linear(dim if rank is None else rank, steps)
            nn.init.constant_(self.to_steps.bias, before_gate(places, init_step))
            self._spread(init_spread)
        self.mixed = None
        if conv > 1:
            own_alone = torch.zeros(steps, conv)
            own_alone[:, 0] = 1
            self.mixed = nn.Parameter(own_alone)

    def _spread(self, spread: float) -> None:
        """Draw W so that Wx has this standard deviation where x has variance 1."""
        inner = 1.0
        if self.low_rank is not None:
            inner = 1 / math.sqrt(3)  # as PyTorch draws W₁
        width = self.to_steps.in_features
        nn.init.normal_(self.to_steps.weight, std=spread / (inner * math.sqrt(width)))

    def remember(self, x: Tensor) -> Tensor:
        """The step of each token, or of ``repo`` its place, (b g n c), at least float32."""
        if self.kind == "repo":
            x = F.silu(self.gate(x)) * self.content(x)
        elif self.low_rank is not None:
            x = self.low_rank(x)
        a, bias = F.linear(x, self.to_steps.weight), self.to_steps.bias
        # with narrow numbers steps of 1 would be other steps
        wide = torch.promote_types(a.dtype, torch.float32)
        a = a.to(wide) + bias.to(wide)
        if self.kind == "softplus":
            # F.softplus, of whose gradient compiled graphs expect other strides than it has
            a = -F.logsigmoid(-a)
        elif self.kind == "sigmoid":
            a = a.sigmoid()
        each = a.shape[-1] // self.groups
        return a.view(*a.shape[:2], self.groups, each).transpose(1, 2)

    def places(self, remembered: Tensor, documents: Tensor | None) -> Tensor:
        """See `Rotation`: the sums of the steps, (b g j c)."""
        exact = remembered.dtype if remembered.device.type == "mps" else torch.float64
        if self.kind == "repo":
            return remembered.to(exact)
        begins = None if documents is None else _begins(documents, remembered.shape[2])
        steps = self._mixed(remembered, begins)
        # before[t]: the sum of the t steps before token t
        before = F.pad(steps.cumsum(2, dtype=exact), (0, 0, 1, 0))
        places = before[:, :, :-1] if self.exclusive else before[:, :, 1:]
        return places if begins is None else places - before[:, :, begins]

    def _mixed(self, steps: Tensor, begins: Tensor | None) -> Tensor:
        """Each step with those before it, within its document; as they are without ``conv``."""
        if self.mixed is None:
            return steps
        (_, groups, n, c), count = steps.shape, self.mixed.shape[1]
        weights = self.mixed.to(steps.dtype).view(groups, c, count)
        out = steps * weights[:, None, :, 0]
        for back in range(1, min(count, n)):
            earlier = steps[:, :, : n - back] * weights[:, None, :, back]
            earlier = F.pad(earlier, (0, 0, back, 0))
            if begins is not None:
                first = torch.arange(n, device=steps.device) - begins < back
                earlier = earlier.masked_fill(first[:, None], 0.0)
            out = out + earlier
        return out

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Rotation`."""
        k_turn, freq = self._turn(k_pos)
        q_turn = k_turn if q_pos is k_pos else self._turn(q_pos)[0]
        if heads is not None and q_turn.shape[1] > 1:
            q_turn = q_turn[:, heads]
        if 1 < k_turn.shape[1] < k.shape[1]:  # those that gates are made from come after them
            k_turn = torch.cat((k_turn, k_turn), dim=1)
        return (
            rotate_by(q, q_turn, freq, half_split=self.half_split),
            rotate_by(k, k_turn, freq, half_split=self.half_split),
        )

    def _turn(self, pos: Tensor) -> tuple[Tensor, Tensor | None]:
        """Places and frequencies, or angles and None, as `rotate_by` takes them."""
        freq = self.inv_freq if self.log_freq is None else self.log_freq.exp()
        if pos.ndim < 4:
            exact = freq.dtype if pos.device.type == "mps" else torch.float64
            pos = pos.reshape(-1, 1, pos.shape[-1], 1).to(exact)
        if pos.shape[-1] == 1:
            return pos, freq
        # the angles of all pairs are held, so narrow ones
        return angles_of(pos, freq, torch.promote_types(freq.dtype, torch.float32)), None

    def trace(self, remembered: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """``positions``, the steps from key to query, and ``gates``, those that keys take.

        Means over the pairs of channels where each has its own.
        """
        places = self.places(remembered, documents).mean(-1)
        found = {"positions": (places[..., :, None] - places[..., None, :]).float()}
        if self.kind != "repo":
            found["gates"] = remembered.mean(-1)[:, :, None].expand_as(found["positions"])
        return found


def _begins(documents: Tensor, n: int) -> Tensor:
    """Where the document of each of n tokens begins, int64 (n)."""
    last = max(len(documents) - 2, 0)
    return documents.long()[document_of(documents, n).clamp(max=last)]


@register
@dataclass(frozen=True, kw_only=True)
class ContextualRotary(TurningScheme):
    """``position: contextual_rotary``: the options of `TurningScheme`, and

    Args:
        places: how they come from tokens: sums of steps ``"softplus"``, from 0 on, ``"sigmoid"``,
            from 0 to 1, or ``"linear"``, of any sign; or ``"repo"``, each token's own place.
        per: ``"head"``: each query head has its own; ``"pair"``: so has each pair of its channels;
            ``"layer"``: one for all heads.
        rank: width of what lies between x and the steps; None: nothing does (``repo``: dim/8).
        conv: how many steps are mixed, the token's own included; 1: none.
        exclusive: a token's own step counts only for those after it.
        learned_freq: the logarithms of the frequencies are learned.
        init_step: the step with which all tokens begin; None: 1, of ``sigmoid`` 0.5, of ``repo`` 0.
        init_spread: standard deviation of what the token adds to it before training.
    """

    name: ClassVar[str] = "contextual_rotary"
    title: ClassVar[str] = "Contextual rotary"
    paper: ClassVar[str] = "arXiv 2512.07805, 2512.14391"
    formula: ClassVar[str] = "R(p_i ω)q · R(p_j ω)k, p_i = Σ_{t≤i} g(x_t)"
    oracle: ClassVar[str] = "formula"
    authors: ClassVar[Mapping[str, Any]] = {
        "places": "softplus",
        "per": "layer",
        "exclusive": True,
        "learned_freq": True,
        "init_step": 0.001,
        "init_spread": 0.5,
        "dim": "whole",
    }

    places: str = "softplus"
    per: str = "head"
    rank: int | None = None
    conv: int = 1
    exclusive: bool = False
    learned_freq: bool = False
    init_step: float | None = None
    init_spread: float = 0.0

    def __post_init__(self) -> None:
        """See `TurningScheme`; and words are known ones."""
        super().__post_init__()
        for option, words in (("places", STARTS), ("per", PER)):
            self.require_among(option, words)

    @property
    def per_layer(self) -> bool:
        """Each layer reads its own input."""
        return True

    def build(self, geometry: Geometry) -> ContextualAngles:
        """The steps of one layer."""
        turned = self.rotated_channels(geometry)
        self.require(self.rank is None or self.rank >= 1, "rank", "1 or more")
        self.require(self.conv >= 1, "conv", "1 or more")
        step = STARTS[self.places] if self.init_step is None else self.init_step
        if self.places == "softplus":
            self.require(step > 0, "init_step", "softplus is above 0")
        if self.places == "sigmoid":
            self.require(0 < step < 1, "init_step", "a sigmoid lies between 0 and 1")
        self.require(self.init_spread >= 0, "init_spread", "it must not be below 0")
        if self.places == "repo":
            for option in ("conv", "exclusive", "init_spread"):
                default = self.options()[option].default
                why = "places='repo' sums no steps: leave it out"
                self.require(getattr(self, option) == default, option, why)
        return ContextualAngles(
            geometry.dim,
            geometry.heads,
            turned,
            self.base,
            self.places,
            per=self.per,
            rank=self.rank,
            conv=self.conv,
            exclusive=self.exclusive,
            learned_freq=self.learned_freq,
            init_step=step,
            init_spread=self.init_spread,
            half_split=self.half_split,
        )
