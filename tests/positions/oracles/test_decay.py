"""Per-row decay against x-transformers' own module and the path integral in loops."""

import math

import pytest
import torch
from x_transformers.x_transformers import PerRowDataDependentAlibi

from xcope.errors import FlagError
from xcope.positions import AttendInputs, Geometry, scheme

GEOMETRY = Geometry(dim=6, heads=3, dim_head=8)
N = 9


def built(**options):
    return scheme("decay", options).build(GEOMETRY)


@pytest.mark.parametrize("options", [{}, {"dim_head": 3, "post_log_scale": 0.3}], ids=str)
def test_x_transformers(options):
    names = {"dim_head": "gate_dim"}
    theirs = PerRowDataDependentAlibi(6, 3, **options)
    ours = built(**{names.get(n, n): value for n, value in options.items()})
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 30, 6, requires_grad=True)
    expected, got = theirs(x), ours.dense(ours.remember(x), 30)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(got)
    grads = [
        torch.autograd.grad((bias * weight).sum(), [x, *module.parameters()])
        for bias, module in ((expected, theirs), (got, ours))
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("gate_dim", [4, None])
def test_attention_by_the_formula_in_loops(own, gate_dim):
    """With ``own`` the sum runs over j < t ≤ i, as GRAPE-AP's."""
    module = built(own=own, gate_dim=gate_dim, post_log_scale=0.7).double()
    q, k, v = (torch.randn(2, 3, N, 8).double() for _ in range(3))
    x = torch.randn(2, N, 6).double()
    remembered = module.remember(x) if gate_dim else None
    inputs = AttendInputs(scale=0.4, remembered=remembered, gate_k=None if gate_dim else k)
    out = module.attend(q, k, v, inputs)
    seen = torch.ones(N, N).bool().tril().expand(2, 3, N, N)
    added = module(q, 0.4 * q @ k.mT, seen, inputs)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 3, N))).tolist():
        logs = []
        for t in range(i + 1):
            if gate_dim is None:
                logit = 0.4 * q[b, h, i] @ k[b, h, t]
            else:
                w = module.to_forget_gates[0].weight.view(2, 3, gate_dim, 6)
                logit = (w[0, h] @ x[b, i]) @ (w[1, h] @ x[b, t]) / math.sqrt(gate_dim)
            logs.append(0.7 * math.log(torch.sigmoid(logit)))
        sums = [sum(logs[j + 1 : i + 1] if own else logs[j:i]) for j in range(i + 1)]
        s = 0.4 * k[b, h, : i + 1] @ q[b, h, i] + torch.tensor(sums).double()
        torch.testing.assert_close(out[b, h, i], s.softmax(0) @ v[b, h, : i + 1])
        assert added[b, h, i, : i + 1].tolist() == pytest.approx(sums)


def test_where_there_is_no_token_nothing_decays():
    """Zeros stand for what there is none of: padding before a row, memories without gates."""
    module = built().double()
    remembered = module.remember(torch.randn(1, 7, 6).double())
    remembered[:, :, 2:5] = 0.0
    dense = module.dense(remembered, 7)
    without = module.dense(remembered[:, :, [0, 1, 5, 6]], 4)
    torch.testing.assert_close(dense[..., 5:, :][..., [0, 1, 5, 6]], without[..., 2:, :])
    assert not dense[..., 2:5].any()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"gate_dim": 0}, "decay_gate_dim"),
        ({"post_log_scale": 0.0}, "decay_post_log_scale"),
        ({"backend": "fast"}, "decay_backend"),
    ],
)
def test_what_is_not_allowed_is_named(options, flag):
    with pytest.raises(FlagError) as told:
        built(**options)
    assert told.value.flag == flag
