"""T5's bias against Hugging Face's T5 and x-transformers' own module."""

import pytest
import torch
from x_transformers.x_transformers import RelativePositionBias

from xcope.positions import Geometry, scheme
from xcope.positions.t5 import bucket_of

SIZES = [(32, 128), (2, 2), (3, 3), (5, 9), (16, 1000), (64, 64), (32, 4096)]


@pytest.mark.parametrize(("num_buckets", "max_distance"), SIZES)
def test_buckets_are_those_of_hugging_face(num_buckets, max_distance):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance = torch.arange(-20, 3 * max_distance)
    expected = t5.T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(bucket_of(distance, num_buckets, max_distance), expected)


@pytest.mark.parametrize(("num_buckets", "max_distance"), SIZES)
def test_bias_is_that_of_x_transformers(num_buckets, max_distance):
    options = {"num_buckets": num_buckets, "max_distance": max_distance}
    theirs = RelativePositionBias(16**0.5, causal=True, heads=3, **options)
    ours = scheme("t5", options).build(Geometry(dim=8, heads=3, dim_head=16))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    pos = torch.arange(300)
    torch.testing.assert_close(ours.dense(pos[-9:], pos), theirs(9, 300), atol=0, rtol=0)


@pytest.mark.parametrize(("num_buckets", "max_distance"), SIZES)
def test_the_table_ends_where_the_last_bucket_begins(num_buckets, max_distance):
    options = {"num_buckets": num_buckets, "max_distance": max_distance}
    module = scheme("t5", options).build(Geometry(dim=8, heads=3, dim_head=16))
    pos = torch.arange(4)
    size = module.terms(pos, pos, 4).table.shape[1]
    buckets = bucket_of(torch.arange(20 * max_distance), num_buckets, max_distance)
    assert (buckets[size - 1 :] == num_buckets - 1).all()
    assert buckets[size - 2] == num_buckets - 2
    assert size <= max_distance + 1
    far = bucket_of(torch.tensor([10**6, 2**40]), num_buckets, max_distance)
    assert (far == num_buckets - 1).all()
