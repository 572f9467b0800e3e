"""Terms of all forms for the tests of attention with an index bias."""

import dataclasses

import torch

from xcope.ops.biased import ByDistance, Piecewise, Separable
from xcope.ops.terms import WITHOUT_GRADIENT, named

FORMS = ["separable", "by_distance", "piecewise"]


def places(i, j, b=None, gaps=False):
    """Of queries and keys: consecutive from 3, or with gaps; per row of a batch of b, shifted."""
    pos = torch.arange(j) + 3
    if gaps:
        pos = torch.randperm(3 * j)[:j].sort().values
    q_pos = pos[j - i :] if i <= j else torch.arange(j - i, j) + 3
    if b is None:
        return q_pos, pos
    shift = 2 * torch.arange(b)[:, None]  # as left padding does
    return q_pos - shift, pos - shift


def make_terms(form, b=1, h=2, i=40, j=40, free=0, batched=False, gaps=False, distances=60):
    """Float64 terms for i queries and j keys, of which the first ``free`` have no place."""
    j -= free
    if form == "separable":
        lead = (b, h) if batched else (h,)
        return Separable(_random(*lead, i).cumsum(-1), _random(*lead, j).cumsum(-1))
    q_pos, k_pos = places(i, j, b if batched else None, gaps)
    if form == "by_distance":
        return ByDistance(_random(h, distances), q_pos, k_pos)
    # t meets no knot: there the gradients of slope and offset would jump
    knots = torch.linspace(0.0514, 1.1271, 8, dtype=torch.float64)
    slope, offset = _random(h, 9), torch.zeros(h, 9, dtype=torch.float64)
    for s, knot in enumerate(knots):
        offset[:, s + 1] = offset[:, s] + (slope[:, s] - slope[:, s + 1]) * knot
    warp = torch.arange(distances, dtype=torch.float64).mul(0.3).log1p()
    shrink = 1 / q_pos.clamp(min=7).double().mul(0.3).log1p()
    return Piecewise(slope, offset + _random(h, 1), knots, warp, shrink, q_pos, k_pos)


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def leaves(terms, dtype):
    """The same terms in a dtype, and their vectors that get a gradient, by name."""
    if terms is None:
        return None, {}
    vectors = {
        n: t.detach().to(dtype).requires_grad_(n not in WITHOUT_GRADIENT)
        for n, t in named(terms).items()
        if t.is_floating_point()
    }
    wanted = {n: t for n, t in vectors.items() if t.requires_grad}
    return dataclasses.replace(terms, **vectors), wanted
