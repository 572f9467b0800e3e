"""ALiBi against Hugging Face's Bloom and MPT, and x-transformers' own module."""

import pytest
import torch
from x_transformers.x_transformers import AlibiPositionalBias

from xcope.positions import Geometry, scheme


def built(heads, **options):
    return scheme("alibi", options).build(Geometry(dim=8, heads=heads, dim_head=8))


@pytest.mark.parametrize("heads", [1, 4, 6, 12])
def test_hugging_face(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt")
    n = 50
    pos = torch.arange(n)
    last = built(heads).dense(pos[-1:], pos)[:, 0]
    # theirs is the last query's row, Bloom's up to a constant that the softmax does not see
    rows = bloom.build_alibi_tensor(torch.ones(1, n), heads, torch.float32)[:, 0]
    torch.testing.assert_close(last, rows - rows[:, -1:], atol=1e-5, rtol=1e-5)
    if heads & (heads - 1) == 0:  # MPT has other slopes elsewhere
        rows = mpt.build_mpt_alibi_tensor(heads, n)[:, 0]
        torch.testing.assert_close(last, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"num_heads": 3}, {"slopes": (0.5, 0.3, 0.0, 1.0)}], ids=str
)
def test_x_transformers(options):
    kwargs = {"slopes": list(options["slopes"])} if "slopes" in options else {}
    theirs = AlibiPositionalBias(options.get("num_heads", 4), total_heads=4, **kwargs)
    ours = built(4, **options)
    pos = torch.arange(30)
    torch.testing.assert_close(ours.dense(pos[-7:], pos), theirs(7, 30))
    anywhere = torch.randint(-9, 99, (2, 11))  # in any order: |i − j| also of later keys
    expected = theirs.forward_custom_pos(anywhere, anywhere)
    torch.testing.assert_close(ours.dense(anywhere, anywhere), expected)
    assert not ours.state_dict()
