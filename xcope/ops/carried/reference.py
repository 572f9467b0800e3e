"""Attention with carried queries by its definition: readable, (b h i j) memory.

A query is carried back over the tokens between it and a key before the two meet:

    s_ij = scale · q_iᵀ M_i M_{i−1} … M_{j+1} k_j + b_ij
    out_i = Σ_{j≤i} softmax_j(s_ij) v_j

``path``: M_t = I − α_t w_t w_tᵀ, α_t = β_t / (|w_t|² + ε). A product of these is I − Wᵀ C W, with C
from one triangular system, so that with Z_it = q_i·w_t (t ≤ i), R_tj = w_t·k_j (t > j),
G_tu = w_t·w_u (t > u)

    q_iᵀ M_i … M_{j+1} k_j = q_i·k_j − Σ_t Z_it Y_tj,   (I + diag(α) G) Y = diag(α) R

``wall``: M_t = diag(e^{g_t}), so that

    q_iᵀ M_i … M_{j+1} k_j = Σ_c q_ic k_jc exp(Σ_{t=j+1..i} g_tc)

Keys that come after their query meet it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.reference import biased_attention_reference
from xcope.ops.carried.inputs import EPS, CarriedInputs
from xcope.ops.nonfinite import scores, weighted_sums

NOTHING_LEFT = -1e4
"""The logarithm of a decay, whose exponential is 0 in all dtypes."""


def moved(kind: str, q: Tensor, k: Tensor, moves: Tensor, seen: Tensor) -> Tensor:
    """What carrying adds to the products q·k, (b h i j): q_iᵀ M_i … M_{j+1} k_j − q_i·k_j.

    Args:
        kind: ``path`` or ``wall``.
        q: (b h i d).
        k: (b h j d).
        moves: (b h j c), see `CarriedInputs`.
        seen: bool, broadcasts to (b h i j).
    """
    i, j = q.shape[2], k.shape[2]
    earlier = torch.ones(i, j, dtype=torch.bool, device=q.device).tril(j - i)
    definition = reflected if kind == "path" else decayed
    return definition(q, k, moves.to(q.dtype), earlier, seen & earlier)


def reflected(q: Tensor, k: Tensor, moves: Tensor, earlier: Tensor, seen: Tensor) -> Tensor:
    """−Z Y of ``path``; ``earlier`` (i j): the key is not after the query."""
    w, beta = moves[..., :-1], moves[..., -1:]
    alpha = beta / (w.square().sum(-1, keepdim=True) + EPS)
    j = w.shape[2]
    before = torch.ones(j, j, dtype=torch.bool, device=q.device).tril(-1)
    Z, R, G = scores(q, w, earlier), scores(w, k, before), scores(w, w, before)
    unit = torch.eye(j, dtype=q.dtype, device=q.device)
    Y = torch.linalg.solve_triangular(unit + alpha * G, alpha * R, upper=False, unitriangular=True)
    return -weighted_sums(Z, Y, earlier).masked_fill(~seen, 0.0)


def decayed(q: Tensor, k: Tensor, g: Tensor, earlier: Tensor, seen: Tensor) -> Tensor:
    """Σ_c q_ic k_jc (exp(P_ic − P_jc) − 1) of ``wall``, P the sums of g, channel by channel."""
    exact = g.dtype if g.device.type == "mps" else torch.float64
    P = g.clamp(min=NOTHING_LEFT).cumsum(2, dtype=exact)  # −∞ − −∞ would be NaN
    added = q.new_zeros(())
    for c in range(q.shape[-1]):
        exponent = P[:, :, P.shape[2] - q.shape[2] :, None, c] - P[:, :, None, :, c]
        left = torch.expm1(exponent.masked_fill(~seen, 0.0)).to(q.dtype)
        added = added + scores(q[..., c : c + 1], k[..., c : c + 1], seen.expand_as(left)) * left
    return added.expand(*q.shape[:3], k.shape[2])


def carried_attention_reference(inputs: CarriedInputs) -> Tensor:
    """The definition on whole tensors: (b h i dv), dtype of q.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.
    """
    dtype, inputs = inputs.q.dtype, inputs.widened()

    def added(q: Tensor, _: Tensor, seen: Tensor) -> Tensor:
        return inputs.scale * moved(inputs.kind, q, inputs.k, inputs.moves, seen)

    given = BiasedInputs(
        q=inputs.q,
        k=inputs.k,
        v=inputs.v,
        bias=inputs.bias,
        scale=inputs.scale,
        mask=inputs.mask,
        cu_seqlens=inputs.cu_seqlens,
        sink=inputs.sink,
    )
    return biased_attention_reference(given, added).to(dtype)


def definition(inputs: CarriedInputs, *tensors: Tensor | None) -> Tensor:
    """The reference as a function of q, k, v, moves, the sink or None, and the bias' vectors."""
    vectors = () if inputs.bias is None else inputs.bias.__dict__
    given = dict(zip((*inputs.carried(), "sink", *vectors), tensors, strict=True))
    return carried_attention_reference(inputs.with_named(given))
