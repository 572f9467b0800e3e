"""Dynamic position bias against x-transformers' own module."""

import pytest
import torch
from x_transformers.x_transformers import DynamicPositionBias

from xcope.positions import Geometry, scheme

GEOMETRY = Geometry(dim=44, heads=3, dim_head=8)


@pytest.mark.parametrize("log_distance", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_x_transformers(depth, norm, log_distance):
    options = {"depth": depth, "norm": norm, "log_distance": log_distance}
    theirs = DynamicPositionBias(44 // 4, heads=3, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours = scheme("dynamic", options).build(GEOMETRY)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    pos = torch.arange(40)
    expected, got = theirs(13, 40), ours.dense(pos[-13:], pos)
    # entries are sums of terms as large as the largest, which processors round differently
    rounding = 1e-6 * float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, atol=rounding, rtol=1e-5)
    weight = torch.randn_like(got)
    for bias in (expected, got):
        (bias * weight).sum().backward()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-3, rtol=1e-4, msg=name)
