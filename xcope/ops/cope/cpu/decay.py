"""The elementwise work of a tile of decays and sticks in torch operations; see `eager`.

Either takes something off the logits, summed up from the query back to the key: what a gate lets
through, in logarithms, or what is left of a stick. With x, minus the gate's logit, or the logit of
a stick's share,

    c_ij = Σ rate · softplus(x_it)      carried: the sum so far, float64
    y_ij = s_ij − c_ij

since log sigmoid(s) = s − softplus(s) and log(1 − sigmoid(s)) = −softplus(s). Weights are the
softmax of y, or, of sticks, exp(y). The gradient of x, with ds that of y:

    dx_it = −rate · sigmoid(x_it) Σ_j ds_ij        over the keys that the gate is summed up for
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xcope.ops.cope.cpu.tiles import BackwardRows, CopeHeads, ForwardRows
from xcope.ops.tiling.eager import exponentiate, hide
from xcope.ops.tiling.tiles import Tile

GONE = 50.0  # e^−50 of a stick is nothing beside what the keys before have got


def forward(s: Tensor, a: Tensor, rows: ForwardRows, tile: Tile, heads: CopeHeads) -> None:
    """Turn ``s`` into exp(y − m) and move the rows on; arguments as of `eager.forward`."""
    s, a = s.mT, a.mT
    _hide(s, a, tile, heads)
    share = _share(a, tile, heads)
    lost = share.flip(-1).cumsum(-1).flip(-1).add_(rows.count[..., None])
    rows.count.copy_(lost[..., 0])
    _take(s, lost if heads.after else lost - share, tile, heads)
    if not heads.stick:
        exponentiate(s, rows)
        return
    s.exp_()
    if (rows.count >= GONE).all():
        rows.start.fill_(tile.j0)


def backward(
    s: Tensor, dp: Tensor, a: Tensor, rows: BackwardRows, tile: Tile, heads: CopeHeads
) -> None:
    """Turn ``s`` into weights, ``dp`` into ds, ``a`` into da; arguments as of `eager.backward`."""
    own_gates = a.data_ptr() != s.data_ptr()
    s, dp, a = s.mT, dp.mT, a.mT
    _hide(s, a, tile, heads)
    share = _share(a, tile, heads)
    through = share.cumsum(-1)
    lost = rows.count[..., None] - through + share
    rows.count -= through[..., -1]
    slope = a.sigmoid().mul_(heads.rate)
    _take(s, lost if heads.after else lost - share, tile, heads)
    s.sub_(rows.m[..., None]).exp_().mul_(rows.inverse[..., None])
    ds = dp.sub_(rows.D[..., None]).mul_(s)
    bare = max(0, heads.bare - tile.j0)
    counted = ds if bare == 0 else ds.clone()
    counted[..., :bare] = 0.0
    lift = counted.cumsum(-1).add_(rows.lift[..., None])
    rows.lift.copy_(lift[..., -1])
    da = (lift if heads.after else lift - counted).mul_(slope).neg_()
    da[..., :bare] = 0.0
    if own_gates:
        a.copy_(da)
    else:
        ds += da


def _hide(s: Tensor, a: Tensor, tile: Tile, heads: CopeHeads) -> None:
    """Set −∞ where a key may not be attended, has no gate, or breaks nothing off."""
    hide(s, tile)
    queries, keys = tile.i1 - tile.i0, s.shape[-1]
    ahead = heads.k.shape[1] - heads.q.shape[2] + tile.i0 - tile.j0  # the first own key
    if ahead >= keys or (heads.stick and (heads.own or ahead <= -queries)):
        return
    without = torch.ones(queries, keys, dtype=torch.bool, device=s.device)
    without.triu_(ahead + 1 if heads.own else ahead)
    if heads.stick:
        without.tril_(ahead)
    a.view(a.shape[0], -1, queries, keys).masked_fill_(without, -torch.inf)


def _take(s: Tensor, lost: Tensor, tile: Tile, heads: CopeHeads) -> None:
    bare = max(0, heads.bare - tile.j0)
    s[..., bare:] -= lost[..., bare:]


def _share(a: Tensor, tile: Tile, heads: CopeHeads) -> Tensor:
    """What each key takes off, float64; 0 where it is hidden, and for keys before the first."""
    share = F.logsigmoid(a.neg()).to(torch.float64).mul_(-heads.rate)
    share[..., : max(0, heads.bare - tile.j0)] = 0.0
    return share
