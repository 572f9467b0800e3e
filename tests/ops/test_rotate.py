"""Turning pairs of channels: the operator against its matrices, forward and backward."""

import pytest
import torch
from torch.library import opcheck

from xcope.ops.rotate import rotate, rotate_in_operations, rotate_reference, turn_pairs

LAYOUTS = pytest.mark.parametrize("half_split", [False, True], ids=["interleaved", "half_split"])


def turn(*shape, dtype=torch.float32, scale=1.3):
    angles = 9 * torch.randn(shape, dtype=dtype)
    return angles.cos() * scale, angles.sin() * scale


def both(x, cos, sin, half_split):
    """(ours, reference), each (out, gradient of x)."""
    results = []
    for function in (rotate, rotate_reference):
        leaf = x.detach().requires_grad_()
        out = function(leaf, cos, sin, half_split=half_split)
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        (grad,) = torch.autograd.grad((out.float() * weight).sum(), leaf)
        results.append((out.detach(), grad))
    return results


def test_the_definition_pair_by_pair():
    x, (cos, sin) = torch.randn(1, 1, 3, 7), turn(3, 2)
    interleaved = rotate(x, cos, sin)
    halves = rotate(x, cos, sin, half_split=True)
    for n in range(3):
        for m in range(2):
            c, s = cos[n, m], sin[n, m]
            for out, a, b in ((interleaved, 2 * m, 2 * m + 1), (halves, m, m + 2)):
                before, after = x[0, 0, n], out[0, 0, n]
                torch.testing.assert_close(after[a], c * before[a] - s * before[b])
                torch.testing.assert_close(after[b], s * before[a] + c * before[b])
    assert torch.equal(interleaved[..., 4:], x[..., 4:])
    assert torch.equal(halves[..., 4:], x[..., 4:])


@LAYOUTS
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("d", "m"), [(8, 4), (8, 2), (7, 3), (2, 1)])
def test_as_the_reference(d, m, per_row, half_split):
    x = torch.randn(2, 3, 5, d)
    cos, sin = turn(2, 5, m) if per_row else turn(5, m)
    for ours, reference in zip(*both(x, cos, sin, half_split), strict=True):
        torch.testing.assert_close(ours, reference)


@LAYOUTS
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_operations_for_compilers(dtype, per_row, half_split):
    x = torch.randn(2, 3, 5, 9).to(dtype)
    cos, sin = turn(2, 5, 3) if per_row else turn(5, 3)
    results = []
    for function in (rotate_in_operations, rotate):
        leaf = x.clone().requires_grad_()
        out = function(leaf, cos, sin, half_split=half_split)
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        results.append((out, *torch.autograd.grad((out.float() * weight).sum(), leaf)))
    torch.testing.assert_close(*results)


MEMORY = {
    "projected": lambda: torch.randn(2, 5, 3, 8).transpose(1, 2),
    "sliced": lambda: torch.randn(2, 3, 5, 11)[..., 1:9],
    "expanded": lambda: torch.randn(2, 3, 5, 1).expand(-1, -1, -1, 8),
    "shared heads": lambda: torch.randn(2, 1, 5, 8).expand(-1, 3, -1, -1),
    "no queries": lambda: torch.randn(2, 3, 0, 8),
}


@LAYOUTS
@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_layout(memory, half_split):
    x = MEMORY[memory]()
    cos, sin = turn(x.shape[2], 3)
    for ours, reference in zip(*both(x, cos, sin, half_split), strict=True):
        torch.testing.assert_close(ours, reference)


def test_a_projections_layout_is_kept():
    x = MEMORY["projected"]()
    assert rotate(x, *turn(5, 3)).stride() == x.stride()


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype, half_split):
    x, (cos, sin) = torch.randn(2, 3, 5, 8).to(dtype), turn(5, 3)
    out = rotate(x, cos, sin, half_split=half_split)
    assert out.dtype == dtype
    assert torch.equal(out, rotate(x.float(), cos, sin, half_split=half_split).to(dtype))
    ours, reference = both(x, cos, sin, half_split)
    assert ours[1].dtype == dtype
    torch.testing.assert_close(ours[1], reference[1], rtol=1e-2, atol=1e-2)


@LAYOUTS
def test_gradcheck(half_split):
    x = torch.randn(2, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    cos, sin = turn(2, 3, 2, dtype=torch.float64)
    function = lambda t: rotate(t, cos, sin, half_split=half_split)  # noqa: E731
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@LAYOUTS
def test_opcheck(half_split):
    x = MEMORY["projected"]().requires_grad_()
    opcheck(turn_pairs, (x, *turn(5, 3), half_split))
    opcheck(turn_pairs, (x.detach().bfloat16().requires_grad_(), *turn(2, 5, 4), half_split))


@LAYOUTS
def test_compiles_without_a_graph_break(half_split):
    torch._dynamo.reset()
    whole = torch.compile(rotate, fullgraph=True, backend="aot_eager")
    x, (cos, sin) = torch.randn(2, 3, 5, 8, requires_grad=True), turn(5, 3)
    grads = [
        torch.autograd.grad(f(x, cos, sin, half_split=half_split).square().sum(), x)[0]
        for f in (whole, rotate)
    ]
    torch.testing.assert_close(*grads)


def test_the_backward_keeps_cos_and_sin_alone():
    kept = []
    x, (cos, sin) = torch.randn(2, 3, 5, 8, requires_grad=True), turn(5, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        rotate(x, cos, sin)
    assert kept == [cos.shape, sin.shape]
