"""PoPE against x-transformers, and against its formula where x-transformers fails."""

import math

import pytest
import torch
import torch.nn.functional as F
from rotations import HEADS, D, assert_depends_on_places_alone, logits, module, queries_and_keys
from x_transformers.x_transformers import PolarEmbedding, apply_polar_pos_emb

from xcope.errors import FlagError
from xcope.positions import Geometry, scheme


def with_phases(**options):
    """Phases on both sides of the range that they are kept in."""
    rotation = module("pope", **options)
    with torch.no_grad():
        rotation.learned_bias.uniform_(-8, 2)
    return rotation


def upstream_of(rotation):
    upstream = PolarEmbedding(D, HEADS)
    upstream.load_state_dict(rotation.state_dict(), strict=True)
    rotation.load_state_dict(upstream.state_dict(), strict=True)
    return upstream


@pytest.mark.parametrize("kv_heads", [HEADS, 1])
@pytest.mark.parametrize("first", [0, 500])
def test_as_x_transformers(first, kv_heads):
    rotation = with_phases()
    upstream = upstream_of(rotation)
    q, k = queries_and_keys(30, kv_heads)
    pos = torch.arange(30) + first
    angles, bias = upstream(pos)
    expected = apply_polar_pos_emb(q, angles) @ apply_polar_pos_emb(k, angles + bias).mT
    ours = logits(rotation, q, k, pos, pos)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    grads = [
        torch.autograd.grad(out.sin().sum(), weights)[0]
        for out, weights in (
            (ours, rotation.learned_bias),
            (expected, upstream.learned_bias),
        )
    ]
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
def test_the_formula_for_grouped_keys_and_rows_of_their_own(kv_heads):
    rotation = with_phases(base=300.0)
    q, k = queries_and_keys(5, kv_heads)
    pos = torch.tensor([[0, 1, 2, 3, 4], [7, 9, 9, 12, 20]])
    ours = logits(rotation, q, k, pos, pos)
    delta = rotation.learned_bias.clamp(-2 * math.pi, 0)
    for b, h, i, j in [(0, 0, 4, 0), (1, 3, 4, 1), (1, 2, 3, 3), (0, 1, 1, 3)]:
        x, y = q[b, h, i], k[b, h // (HEADS // kv_heads), j]
        expected = sum(
            F.softplus(x[c])
            * F.softplus(y[c])
            * torch.cos((pos[b, i] - pos[b, j]) * 300 ** (-c / D) - delta[h, 0, c])
            for c in range(D)
        )
        torch.testing.assert_close(ours[b, h, i, j], expected, rtol=1e-4, atol=1e-4)


def test_depends_on_places_alone():
    assert_depends_on_places_alone(with_phases())


def test_keys_stay_as_few_as_they_are():
    q, k = queries_and_keys(5, kv_heads=2)
    pos = torch.arange(5)
    rotation = module("pope")
    q, k = rotation.rotate(q, k, pos, pos)
    assert q.shape == (2, HEADS, 5, 2 * D)
    assert k.shape == (2, 2, 5, 2 * D)
    assert rotation.widens


def test_phases_start_at_0_or_anywhere():
    assert (module("pope").learned_bias == 0).all()
    drawn = module("pope", bias_uniform_init=True).learned_bias
    assert drawn.is_leaf
    assert drawn.requires_grad
    assert -2 * math.pi <= drawn.min() < -4
    assert -2 < drawn.max() <= 0


def test_low_precision():
    rotation = with_phases().bfloat16()
    assert rotation.inv_freq.dtype == torch.float32
    q, k = queries_and_keys(9, dtype=torch.bfloat16)
    pos = torch.arange(9) + 3000
    turned = rotation.rotate(q, k, pos, pos)
    exact = rotation.float().rotate(q.float(), k.float(), pos, pos)
    for ours, expected in zip(turned, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, expected.bfloat16())


def test_gradcheck():
    small = Geometry(dim=6, heads=2, dim_head=3)
    rotation = scheme("pope", {"bias_uniform_init": True}).build(small).double()
    shapes = ((1, 2, 2, 3), (1, 1, 2, 3))
    q, k = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    pos = torch.tensor([[3, 9]])
    assert torch.autograd.gradcheck(
        lambda q, k, _: rotation.rotate(q, k, pos, pos), (q, k, rotation.learned_bias)
    )


def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    rotation = with_phases()
    whole = torch.compile(rotation.rotate, fullgraph=True, backend="aot_eager")
    q, k = queries_and_keys(6, kv_heads=2)
    pos = torch.arange(6)
    for given in ((q, k, pos, pos), (q[:, :, -2:], k, pos[-2:], pos)):
        torch.testing.assert_close(whole(*given), rotation.rotate(*given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 1.0}, "pope_base=1.0 is not allowed: it must be above 1"),
        ({"bias_uniform_init": 1}, "pope_bias_uniform_init=1 is not of type bool"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(FlagError, match=message):
        module("pope", **options)
