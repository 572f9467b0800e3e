"""Whole models under torch.compile: one graph, compiled once, the same numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from xcope import Decoder, TransformerWrapper


def model(position, **flags):
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=3, heads=2, attn_dim_head=16, position=position, **flags)
    return TransformerWrapper(num_tokens=16, max_seq_len=40, attn_layers=layers)


def gradients(net, called, x, **keywords):
    net.zero_grad()
    called(x, **keywords).square().sum().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "position",
    ["cope", "rotary", "alibi", "t5", "forgetting", ["absolute", "cope"], ["rotary", "none"]],
    ids=str,
)
def test_one_graph(position):
    torch._dynamo.reset()
    net, counter = model(position), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randint(16, (2, 30))
        torch.testing.assert_close(gradients(net, compiled, x), gradients(net, net, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("position", ["cope", "alibi"])
def test_with_a_mask_and_grouped_keys(position):
    torch._dynamo.reset()
    net = model(position, attn_kv_heads=1)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x, mask = torch.randint(16, (2, 30)), torch.rand(2, 30) > 0.2
    ours, truth = (gradients(net, f, x, mask=mask) for f in (compiled, net))
    torch.testing.assert_close(ours, truth)
