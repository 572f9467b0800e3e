"""Whole models under torch.compile: one graph, compiled once, the same numbers."""

import pytest
import torch
from schemes import KINDS, position
from torch._dynamo.testing import CompileCounterWithBackend

import xcope
from xcope import Decoder, TransformerWrapper

pytestmark = pytest.mark.long


def model(its_position, depth=1, **flags):
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": depth, "heads": 2, "attn_dim_head": 16}
    layers = Decoder(**sizes | flags, position=its_position)
    net = TransformerWrapper(num_tokens=16, max_seq_len=50, attn_layers=layers)
    for parameter in net.parameters():  # so that what begins at zero acts
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def logits_and_gradients(net, called, x, **keywords):
    net.zero_grad()
    torch.manual_seed(0)  # places may be drawn at random
    logits = called(x, **keywords)
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    return logits.detach(), grads


def compiled_frames(net, calls):
    """How often the model is compiled for these calls, each of which must give eager's numbers."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for x, keywords in calls:
        ours, truth = (logits_and_gradients(net, f, x, **keywords) for f in (compiled, net))
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
    return counter.frame_count


def tokens(n=30, b=2):
    return torch.randint(16, (b, n))


@pytest.mark.parametrize("name", {xcope.schemes()[name].slot: name for name in KINDS}.values())
def test_one_graph(name):
    """One scheme of each slot; tests/tools.py compiles every kind for all lengths."""
    assert compiled_frames(model(position(name)), [(tokens(), {})] * 2) == 1


@pytest.mark.parametrize("name", ["none", "rotary", "alibi", "cope", "forgetting"])
def test_with_all_logits_held(name):
    net = model(name, attn_softclamp_logits=True)
    assert compiled_frames(net, [(tokens(), {})] * 2) == 1


@pytest.mark.parametrize(
    "several",
    [["rotary", "none"], {"heads": ["cope", "alibi"]}, {"name": "rotary", "random_max": 60}],
    ids=str,
)
def test_splits_and_random_places(several):
    assert compiled_frames(model(several, depth=2), [(tokens(), {})] * 2) == 1


@pytest.mark.parametrize("name", ["cope", "alibi"])
def test_with_a_mask_and_grouped_keys(name):
    net = model(name, heads=4, attn_kv_heads=2)
    masks = (torch.rand(2, 30) > 0.2 for _ in range(2))
    assert compiled_frames(net, [(tokens(), {"mask": mask}) for mask in masks]) == 1


@pytest.mark.parametrize("name", ["rotary", "alibi", "cope", "forgetting"])
def test_all_lengths_share_a_second_graph(name):
    assert compiled_frames(model(name), [(tokens(n), {}) for n in (30, 40, 50, 35)]) == 2


@pytest.mark.parametrize("name", ["absolute", "cope", "alibi", "rotary"])
def test_packed_documents(name):
    edges = (torch.tensor(e, dtype=torch.int32) for e in ([0, 7, 7, 30], [0, 3, 20, 30]))
    calls = [(tokens(b=1), {"cu_seqlens": cu_seqlens}) for cu_seqlens in edges]
    assert compiled_frames(model(name), calls) == 1
