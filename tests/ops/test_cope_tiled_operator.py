"""The tiled CoPE backend as a PyTorch operator, and the choice of what computes it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from xcope.ops.cope import CopeInputs, cope_attention
from xcope.ops.cope.operator import cope
from xcope.ops.inputs import FEW


def leaves(i=40, j=50):
    shapes = ((2, 4, i, 16), (2, 2, j, 16), (2, 2, j, 16), (8, 16))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def attention(*tensors):
    return cope_attention(*tensors, backend="tiled")


def gradients(function, tensors):
    return torch.autograd.grad(function(*tensors).square().sum(), tensors)


def test_opcheck():
    q, k, v, e = leaves()
    given = CopeInputs(q=q, k=k, v=v, pos_emb=e, scale=0.25)
    opcheck(cope, (*given.flat(), "tiled"))
    gate_k, mask = torch.randn_like(k).requires_grad_(), torch.rand(2, 1, 1, 50) > 0.3
    given = replace(given, gate_k=gate_k, mask=mask, causal=False, soft_onehot=True)
    opcheck(cope, (*given.flat(), "tiled"))


def test_gradcheck():
    tensors = [t.detach().double()[..., :9, :8].requires_grad_() for t in leaves()]
    assert torch.autograd.gradcheck(attention, tensors)


def test_second_derivatives_are_those_of_the_definition():
    tensors, seconds = leaves(), []
    for backend in ("tiled", "reference"):
        out = cope_attention(*tensors, backend=backend).square().sum()
        first = torch.autograd.grad(out, tensors, create_graph=True)
        total = sum(grad.square().sum() for grad in first)
        seconds.append(torch.autograd.grad(total, tensors))
    for ours, truth in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-3 * float(truth.abs().max()), rtol=1e-3)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    whole = torch.compile(attention, fullgraph=True, backend="aot_eager")
    tensors = leaves()
    for ours, plain in zip(gradients(whole, tensors), gradients(attention, tensors), strict=True):
        torch.testing.assert_close(ours, plain)


def test_checkpoint():
    tensors = leaves()
    again = gradients(lambda *t: checkpoint(attention, *t, use_reentrant=False), tensors)
    for ours, plain in zip(again, gradients(attention, tensors), strict=True):
        torch.testing.assert_close(ours, plain)


def test_autocast():
    q, k, v, e = leaves()
    eye = torch.eye(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*(F.linear(t, eye) for t in (q, k, v)), e)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in (q, k, v, e))


def test_autocast_mixes_heads_alike_in_both_passes():
    q, k, v, e = leaves()
    mix = torch.randn(q.shape[1], q.shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = cope_attention(q, k, v, e, head_mix=mix, backend="tiled")
    low = (t.bfloat16() for t in (q, k, v))
    alone = cope_attention(*low, e, head_mix=mix, backend="tiled")
    assert torch.equal(ours, alone)
    ours.float().square().sum().backward()  # other counts than the forward's crash it


@pytest.mark.parametrize("i", [1, FEW])
@pytest.mark.parametrize("p", [4, 100])
@pytest.mark.parametrize("options", ["", "mask", "gate_k", "head_mix", "soft_onehot"])
def test_a_few_queries_without_gradients(i, p, options):
    q, k, v, _ = leaves(i, 300)
    e = torch.randn(p, 16)
    given = {
        "": {},
        "mask": {"mask": torch.rand(2, 300) > 0.4},
        "gate_k": {"gate_k": torch.randn_like(k)},
        "head_mix": {"head_mix": torch.randn(4, 4)},
        "soft_onehot": {"soft_onehot": True, "soft_onehot_temp": 0.04},
    }[options]
    with torch.no_grad():
        ours = cope_attention(q, k, v, e, **given, backend="tiled")
        torch.testing.assert_close(
            ours, cope_attention(q, k, v, e, **given, backend="reference"), rtol=1e-4, atol=1e-4
        )
