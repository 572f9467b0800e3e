"""Whole models under torch.compile: one graph, forward and backward, the same numbers."""

import pytest
import torch

import xcope

FLAGS = {
    "cope": {"position": "cope"},
    "grouped keys": {"position": "cope", "attn_kv_heads": 2},
    "cope and rotary": {"position": "cope_rotary"},
    "rotary": {"position": "rotary"},
    "half split": {"position": {"name": "rotary", "layout": "half_split"}},
    "xpos": {"position": "xpos"},
    "pope": {"position": "pope"},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5"},
    "kerple": {"position": "kerple"},
    "fire": {"position": "fire"},
    "forgetting": {"position": "forgetting"},
    "layers and heads": {"position": {"layers": [{"heads": ["cope", "rotary"]}, "alibi"]}},
    "variants": {
        "position": "cope",
        "cope_per_head": True,
        "cope_sep_keys": True,
        "cope_talking_heads": True,
    },
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_one_graph_with_the_same_output_and_gradients(flags):
    torch._dynamo.reset()
    model = xcope.TransformerWrapper(
        num_tokens=50,
        max_seq_len=64,
        attn_layers=xcope.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **flags),
    )
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = torch.randint(50, (2, 40))
    seen = {}
    for name, call in {"compiled": whole, "plain": model}.items():
        model.zero_grad()
        out = call(tokens)
        out.square().mean().backward()
        seen[name] = [out.detach(), *(p.grad.clone() for p in model.parameters())]
    for compiled, plain in zip(seen["compiled"], seen["plain"], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
