"""Relative positions against Shaw's formula in loops, x-transformers' module and Inkling's."""

import pytest
import torch
from transformers.models.inkling.modeling_inkling import InklingRelativeLogits
from x_transformers.x_transformers import RelativeProjPositionalBias

from xcope.errors import FlagError
from xcope.positions import AttendInputs, Geometry, parse, scheme

GEOMETRY = Geometry(dim=6, heads=3, dim_head=8)
N = 9


def built(**options):
    module = scheme("relative", options).build(GEOMETRY).double()
    with torch.no_grad():
        module.pos_emb.normal_()
    return module


def qkv():
    return [torch.randn(2, 3, N, 8).double() for _ in range(3)]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_formula_and_that_of_copes_authors_in_loops(scaled):
    """Theirs, with ``rel_pos_extend``, divides both products by √d."""
    module, (q, k, v) = built(max_pos=4, scaled=scaled), qkv()
    out = module.attend(q, k, v, AttendInputs(scale=8**-0.5))
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 3, N))).tolist():
        logits = []
        for j in range(i + 1):
            asked = q[b, h, i] @ module.pos_emb[min(i - j, 3)]
            logits.append((q[b, h, i] @ k[b, h, j] + asked * (1 if scaled else 8**0.5)) * 8**-0.5)
        expected = torch.stack(logits).softmax(0) @ v[b, h, : i + 1]
        torch.testing.assert_close(out[b, h, i], expected)


def added(module, x):
    """What the module adds to logits, (b h i j); 0 where a key is not seen."""
    q = torch.zeros(2, 3, N, 8).double()
    seen = torch.ones(N, N).bool().tril().expand(2, 3, N, N)
    inputs = AttendInputs(scale=1.0, remembered=module.remember(x))
    return module(q, torch.zeros(2, 3, N, N).double(), seen, inputs).masked_fill(~seen, 0.0)


def projected(**options):
    return built(max_pos=4, width=5, beyond="zero", **options), torch.randn(2, N, 6).double()


def test_as_x_transformers_with_a_projection_that_asks():
    (ours, x), theirs = projected(), RelativeProjPositionalBias(6, 3, 5, 4).double()
    with torch.no_grad():
        theirs.distance_bank.copy_(ours.pos_emb.mT)
    theirs.to_distance_weights[0].load_state_dict(ours.to_r.state_dict())
    torch.testing.assert_close(added(ours, x), theirs(x))


def test_as_inkling_with_a_projection_that_asks():
    (ours, x), theirs = projected(), InklingRelativeLogits(5, 4).double()
    with torch.no_grad():
        theirs.proj.copy_(ours.pos_emb.mT)
    states = ours.to_r(x).view(2, N, 3, 5)
    expected = theirs(states, torch.arange(N), torch.arange(N))
    torch.testing.assert_close(added(ours, x), expected)


def test_attention_of_a_projection_that_asks_is_that_of_what_it_adds():
    (ours, x), (q, k, v) = projected(), qkv()
    inputs = AttendInputs(scale=0.4, remembered=ours.remember(x))
    seen = torch.ones(N, N).bool().tril()
    s = 0.4 * q @ k.mT + added(ours, x)
    expected = s.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(ours.attend(q, k, v, inputs), expected)
    order = torch.tensor([2, 0, 1])
    inputs = AttendInputs(scale=0.4, remembered=ours.remember(x), heads=order)
    found = ours.attend(q[:, order], k[:, order], v[:, order], inputs)
    torch.testing.assert_close(found, expected[:, order])


def test_tables_of_another_length_go_on_with_the_last_entry():
    short, long = built(max_pos=3), built(max_pos=5)
    begun = long.resized("pos_emb", short.pos_emb)
    torch.testing.assert_close(begun[:3], short.pos_emb)
    torch.testing.assert_close(begun[3:], short.pos_emb[-1:].expand(2, -1))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_pos": 0}, "relative_max_pos"),
        ({"max_pos": "all"}, "relative_max_pos"),
        ({"width": 0}, "relative_width"),
        ({"beyond": "none"}, "relative_beyond"),
        ({"init_std": -1.0}, "relative_init_std"),
        ({"backend": "fast"}, "relative_backend"),
    ],
)
def test_what_is_not_allowed_is_named(options, flag):
    with pytest.raises(FlagError) as told:
        built(**options)
    assert told.value.flag == flag


def test_not_beside_queries_that_are_wider_than_the_table():
    with pytest.raises(FlagError, match="'relative' and 'pope'"):
        parse(["relative", "pope"])
