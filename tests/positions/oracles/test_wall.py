"""Wall attention against its formula in loops over the tokens."""

import pytest
import torch
from carried_schemes import GEOMETRY, all_ways_agree, attention, built, by_loops, inputs, same
from torch.nn.functional import logsigmoid

from xcope.positions import AttendInputs, scheme


def decays(module, x):
    g = logsigmoid(x @ module.to_decays.weight.T + module.to_decays.bias)
    return g.view(*x.shape[:2], 3, 4)


def test_the_formula():
    module = built("wall")
    x, q, k, v = inputs()
    g = decays(module, x)
    expected = by_loops(q, k, v, lambda x, b, h, t: x * g[b, t, h].exp())
    same(attention(module, x, q, k, v), expected, module, x)


def test_as_flash_linear_attention_writes_it():
    """2^(P_i − P_j) with P the running sum of log₂, for all pairs and channels at once."""
    module = built("wall")
    x, q, k, v = inputs()
    P = decays(module, x).cumsum(1).transpose(1, 2) / torch.log(torch.tensor(2.0).double())
    left = torch.exp2(P[:, :, :, None] - P[:, :, None])
    s = 0.5 * (q[:, :, :, None] * k[:, :, None] * left).sum(-1)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = s.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    same(attention(module, x, q, k, v), expected, module, x)


def test_with_forget_forgetting_attentions_bias_is_added():
    module = built("wall", forget=True)
    x, q, k, v = inputs()
    g, linear = decays(module, x), module.forgetting.to_forget_gates[0]
    log_f = logsigmoid(x @ linear.weight.T + linear.bias)
    expected = by_loops(
        q, k, v, lambda x, b, h, t: x * g[b, t, h].exp(), lambda b, h, t: log_f[b, t, h]
    )
    same(attention(module, x, q, k, v), expected, module, x)


@pytest.mark.parametrize("options", [{"bias_init": 0.0}, {"forget": True}], ids=str)
def test_cache_padding_and_documents_give_what_the_row_gives(options):
    all_ways_agree({"name": "wall", **options})


def test_what_is_traced_is_what_is_left_of_the_channels():
    module = built("wall")
    x, q, k, _ = inputs()
    seen = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 3, 9, 9)
    its = AttendInputs(scale=0.5, remembered=module.remember(x))
    left = module.trace(q, q @ k.mT, seen, its)["left"]
    expected = decays(module, x)[1, 3:6, 2].sum(0).exp().mean()
    torch.testing.assert_close(left[1, 2, 5, 2], expected)
    assert (left.diagonal(dim1=2, dim2=3) == 1).all()
    assert (left[~seen] == 0).all()


def test_it_begins_near_attention_without_positions():
    module = scheme("wall").build(GEOMETRY)
    assert (module.to_decays.bias == 8).all()
    # after 2066 tokens half of a channel is left
    assert 0.49 < torch.exp(2066 * logsigmoid(torch.tensor(8.0))) < 0.51
