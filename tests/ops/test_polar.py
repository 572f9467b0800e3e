"""Polar coordinates: the operator against its definition, forward and backward."""

import pytest
import torch
from torch.library import opcheck

from xcope.ops.polar import polar, polar_reference, to_polar


def turn(*shape, dtype=torch.float32):
    angles = 9 * torch.randn(shape, dtype=dtype)
    return angles.cos(), angles.sin()


def both(x, cos, sin, phase):
    """(ours, reference), each (out, gradients of x and phase)."""
    results = []
    leaves = [t.detach().requires_grad_() for t in (x, phase) if t is not None]
    for function in (polar, polar_reference):
        out = function(leaves[0], cos, sin, *leaves[1:])
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        grads = torch.autograd.grad((out.float() * weight).sum(), leaves)
        results.append((out.detach(), *grads))
    return results


def phases(with_phase, h=3, d=4):
    return torch.randn(h, d) if with_phase else None


@pytest.mark.parametrize("with_phase", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_as_the_reference(projected, per_row, with_phase):
    x = torch.randn(2, 5, 3, 4).transpose(1, 2) if projected else 9 * torch.randn(2, 3, 5, 4)
    cos, sin = turn(2, 5, 4) if per_row else turn(5, 4)
    for ours, reference in zip(*both(x, cos, sin, phases(with_phase)), strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    x, (cos, sin), phase = torch.randn(2, 3, 5, 4).to(dtype), turn(5, 4), phases(True)
    out = polar(x, cos, sin, phase)
    assert out.dtype == dtype
    assert torch.equal(out, polar(x.float(), cos, sin, phase).to(dtype))
    ours, reference = both(x, cos, sin, phase)
    assert [t.dtype for t in ours] == [t.dtype for t in reference] == [dtype, dtype, torch.float32]
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


def test_gradcheck():
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    phase = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    cos, sin = turn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: polar(a, cos, sin, b), (x, phase))
    assert torch.autograd.gradcheck(lambda a: polar(a, cos, sin), x)


def test_gradgradcheck():
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    phase = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    cos, sin = turn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda a, b: polar(a, cos, sin, b), (x, phase))
    assert torch.autograd.gradgradcheck(lambda a: polar(a, cos, sin), x)


@pytest.mark.parametrize("with_phase", [False, True])
def test_opcheck(with_phase):
    x = torch.randn(2, 5, 3, 4).transpose(1, 2).requires_grad_()
    phase = phases(with_phase)
    phase = None if phase is None else phase.requires_grad_()
    opcheck(to_polar, (x, *turn(5, 4), phase))
    opcheck(to_polar, (x.detach().bfloat16().requires_grad_(), *turn(2, 5, 4), phase))


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    whole = torch.compile(polar, fullgraph=True, backend="aot_eager")
    x, (cos, sin) = torch.randn(2, 3, 5, 4, requires_grad=True), turn(5, 4)
    phase = torch.randn(3, 4, requires_grad=True)
    compiled, plain = (
        torch.autograd.grad(f(x, cos, sin, phase).square().sin().sum(), (x, phase))
        for f in (whole, polar)
    )
    torch.testing.assert_close(compiled, plain)


def test_the_backward_keeps_no_copy_of_its_own():
    kept = []
    x, (cos, sin) = torch.randn(2, 3, 5, 4, requires_grad=True), turn(5, 4)
    phase = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        polar(x, cos, sin, phase)
    assert kept == [t.data_ptr() for t in (x, cos, sin, phase)]
