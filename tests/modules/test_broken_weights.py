"""A model with a weight that is not a number says so, whatever its scheme and way of running."""

import pytest
import torch
from schemes import NAMES, position

import xcope


def broken(name, projection, **flags):
    decoder = xcope.Decoder(
        dim=32, depth=1, heads=4, attn_dim_head=16, verbose=False, position=position(name), **flags
    )
    model = xcope.TransformerWrapper(num_tokens=20, max_seq_len=64, attn_layers=decoder).eval()
    weight = getattr(model.attn_layers.layers[0][1], projection).weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("projection", ["to_q", "to_k", "to_v"])
@pytest.mark.parametrize("n", [5, 40])
def test_a_weight_that_is_nan_makes_all_logits_nan(name, projection, n):
    model, tokens = broken(name, projection), torch.randint(20, (2, n))
    # a token that has no other before it breaks nothing off its stick: its value is all it gives
    first = 1 if name == "stick_breaking" else 0
    assert model(tokens)[:, first:].isnan().all()
    with torch.no_grad():
        assert model(tokens)[:, first:].isnan().all()
        if not model.attn_layers.can_cache_kv:  # dynamic NTK
            return
        _, cache = model(tokens[:, :-1], return_intermediates=True)
        assert model(tokens, cache=cache)[:, -1].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_where_logits_are_kept_too(name):
    model = broken(name, "to_q")
    with xcope.modules.seam.logits_kept(model):
        assert model(torch.randint(20, (1, 9))).isnan().all()
