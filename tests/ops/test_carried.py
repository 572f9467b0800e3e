"""Attention with carried queries against plain loops over the tokens, however it is computed."""

from itertools import pairwise

import pytest
import torch
from torch.func import grad, jvp, vmap

from xcope.errors import FlagError
from xcope.ops.carried import (
    carried_attention,
    decays,
    path_attention,
    reflections,
    walk,
    wall_attention,
)
from xcope.ops.terms import ByDistance, Separable

KINDS = ("path", "wall")
BOTH = ("tiled", "reference")


@pytest.fixture
def small(monkeypatch):
    """Groups and blocks so small that a few tokens fill several."""
    monkeypatch.setattr(walk, "GROUP", 16)
    monkeypatch.setattr(walk, "MERGED", 3)
    monkeypatch.setattr(reflections, "SIZE", 4)
    monkeypatch.setattr(decays, "SIZE", 2)


def step(kind, x, move):
    """A query that is carried back over one token."""
    if kind == "wall":
        return x * move.exp()
    w, beta = move[:-1], move[-1]
    return x - beta * (x @ w) * w / (w @ w + 1e-6)


def by_loops(kind, q, k, v, moves, scale, allowed=lambda b, h, i, j: True, bias=None, sink=None):
    """The definition, one query, one key and one token at a time."""
    (b, h, i, _), (_, hk, j, _) = q.shape, k.shape
    rows = []
    for row, head, query in torch.cartesian_prod(*map(torch.arange, (b, h, i))).tolist():
        key_head, place, carried, logits, values = head * hk // h, j - i + query, None, [], []
        for t in range(place, -1, -1):
            carried = q[row, head, query] if carried is None else carried
            if allowed(row, head, query, t):
                s = scale * (carried @ k[row, key_head, t])
                logits.append(s if bias is None else s + bias[head, query, t])
                values.append(v[row, key_head, t])
            carried = step(kind, carried, moves[row, head, t])
        if logits and sink is not None:
            logits.append(sink[head])
            values.append(torch.zeros_like(values[0]))
        if logits:
            rows.append(torch.stack(logits).softmax(0) @ torch.stack(values))
        else:
            rows.append(torch.zeros_like(v[0, 0, 0]))
    return torch.stack(rows).view(b, h, i, -1)


def moves_of(kind, *shape, d, dtype=torch.float64):
    if kind == "wall":
        return -3 * torch.rand(*shape, d, dtype=dtype)
    w, beta = torch.randn(*shape, d, dtype=dtype), 2 * torch.rand(*shape, 1, dtype=dtype)
    return torch.cat((w, beta), dim=-1)


def given(kind, i, j, b=1, h=2, hk=None, d=4, dv=4, dtype=torch.float64):
    torch.manual_seed(j)
    shapes = ((b, h, i, d), (b, hk or h, j, d), (b, hk or h, j, dv))
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    tensors.append(moves_of(kind, b, h, j, d=d, dtype=dtype))
    return [t.requires_grad_() for t in tensors]


def gradients(out, tensors, weight):
    kept = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return torch.autograd.grad((out * weight).sum(), tensors, **kept)


def same_with_gradients(ours, truth, tensors, **tolerance):
    torch.testing.assert_close(ours, truth, **tolerance)
    weight = torch.randn_like(truth)
    for mine, theirs in zip(
        gradients(ours, tensors, weight.to(ours.dtype)),
        gradients(truth, tensors, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize(("i", "j"), [(1, 1), (5, 5), (21, 21), (33, 33), (9, 30), (1, 18)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_agrees_with_loops_over_the_tokens(kind, i, j, backend, small):
    tensors = given(kind, i, j, dv=3)
    ours = carried_attention(kind, *tensors, scale=0.4, backend=backend)
    same_with_gradients(ours, by_loops(kind, *tensors, 0.4), tensors)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize(("i", "j"), [(1, 1), (21, 21), (9, 30), (1, 18)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_takes_its_share(kind, i, j, backend, small):
    tensors = given(kind, i, j, dv=3)
    sink = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    mask = torch.arange(j)[None] != 3
    ours = carried_attention(kind, *tensors, scale=0.4, sink=sink, mask=mask, backend=backend)
    truth = by_loops(kind, *tensors, 0.4, lambda b, h, i, j: j != 3, sink=sink)
    same_with_gradients(ours, truth, [*tensors, sink])
    with torch.no_grad():
        last = (tensors[0][:, :, -1:], *tensors[1:])
        few = carried_attention(kind, *last, scale=0.4, sink=sink, mask=mask, backend=backend)
    torch.testing.assert_close(few, truth[:, :, -1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_of_packed_documents_with_a_bias_and_derivatives_of_any_order(kind, small):
    tensors = given(kind, 24, 24, hk=1, d=2, dv=2)
    sink = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    bias = Separable(*torch.randn(2, 2, 24, dtype=torch.float64))
    edges = torch.tensor([0, 7, 7, 24])
    options = {"sink": sink, "bias": bias, "cu_seqlens": edges}
    ours, truth = (carried_attention(kind, *tensors, **options, backend=b) for b in BOTH)
    same_with_gradients(ours, truth, [*tensors, sink])

    def attention(sink, *tensors):
        return carried_attention(kind, *tensors, sink=sink)

    few = [sink, *given(kind, 3, 3, d=2, dv=1)]
    assert torch.autograd.gradcheck(attention, few)
    assert torch.autograd.gradgradcheck(attention, few)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 300.0, -300.0])
def test_a_sink_that_is_extreme_is_as_by_definition(kind, value, small):
    tensors = [t.detach().float() for t in given(kind, 21, 21)]
    sink = torch.tensor([value, 0.0])
    ours, truth = (carried_attention(kind, *tensors, sink=sink, backend=b) for b in BOTH)
    torch.testing.assert_close(ours, truth, equal_nan=True)
    with pytest.raises(FlagError, match=r"sink \(3\) must be \(2\)"):
        carried_attention(kind, *tensors, sink=torch.zeros(3))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_their_usual_size_agree_with_the_definition(kind):
    tensors = given(kind, 600, 600, h=1, d=16, dv=16)
    ours, truth = (carried_attention(kind, *tensors, backend=b) for b in ("tiled", "reference"))
    same_with_gradients(ours, truth, tensors, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas_gradients_are_right_by_finite_differences(kind, small):
    def attention(*tensors):
        return carried_attention(kind, *tensors)

    assert torch.autograd.gradcheck(attention, given(kind, 7, 7, h=1, d=2, dv=1))
    assert torch.autograd.gradgradcheck(attention, given(kind, 3, 3, h=1, d=2, dv=1))


EXTREMES = {
    "path": {
        "nothing": lambda m: m[..., -1].zero_(),
        "projections": lambda m: m[..., -1].fill_(1.0),
        "mirrors": lambda m: m[..., -1].fill_(2.0),
        "one mirror again and again": lambda m: m.copy_(m[:, :, :1]),
        "projections onto one plane": lambda m: m.copy_(m[:, :, :1])[..., -1].fill_(1.0),
        "long directions": lambda m: m[..., :-1].mul_(1e6),
        "no direction": lambda m: m[..., :-1].zero_(),
    },
    "wall": {
        "nothing": lambda m: m.zero_(),
        "strong": lambda m: m.mul_(30.0),
        "all at once": lambda m: m.mul_(1e4),
        "all of one channel at one token": lambda m: m.zero_()[:, :, 5].fill_(-1e30),
        "one strong token": lambda m: m.mul_(1e-3)[:, :, 9].fill_(-1e5),
        "10⁻¹² everywhere": lambda m: m.fill_(-27.6),
        "5 a token": lambda m: m.fill_(-5.0),
    },
}


@pytest.mark.parametrize(("kind", "how"), [(k, how) for k in KINDS for how in EXTREMES[k]])
def test_extreme_moves_in_float32_are_as_in_float64(kind, how):
    with torch.no_grad():
        tensors = given(kind, 150, 150, d=8, dv=8)
        EXTREMES[kind][how](tensors[3])
    narrow = [t.detach().float().requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    ours = carried_attention(kind, *narrow)
    truth = carried_attention(kind, *exact, backend="reference")
    torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=1e-4)
    weight = torch.randn_like(truth)
    grads = zip(
        gradients(ours, narrow, weight.float()), gradients(truth, exact, weight), strict=True
    )
    for mine, theirs in grads:
        # with no direction at all its gradient is about 1 / ε
        within = 2e-4 * max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine.double(), theirs, atol=within, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_is_carried_over_thousands_of_tokens_keeps_its_digits(kind):
    n, d = 2500, 8
    moves = moves_of(kind, 1, 1, n, d=d)
    if kind == "path":
        moves[..., -1] = 2.0  # mirrors all the way: nothing of a mistake fades
    else:
        moves /= 3 * n
    q, k, v = torch.randn(1, 1, n, d).double(), torch.zeros(1, 1, n, d), torch.zeros(1, 1, n, d)
    k[0, 0, :d] = v[0, 0, :d] = torch.eye(d)  # the last query's channels, as they arrive
    seen = torch.arange(n)[None] < d
    given = (q.float(), k, v, moves.float())
    out = carried_attention(kind, *given, scale=1.0, mask=seen)[0, 0, -1]
    carried, arrived = q.float()[0, 0, -1].double(), []
    for t in range(n - 1, -1, -1):
        arrived = [carried[t], *arrived] if t < d else []
        carried = step(kind, carried, moves.float()[0, 0, t].double())
    torch.testing.assert_close(out.double(), torch.stack(arrived).softmax(0), atol=1e-5, rtol=1e-4)


def test_a_decay_to_nothing_is_a_reset_and_no_nan(small):
    """What others' kernels, in which −∞ − −∞ meet, made NaN of."""
    q, k, v, moves = given("wall", 24, 24, dtype=torch.float32)
    reset = moves.detach().clone()
    reset[:, :, 11] = -torch.inf
    reset.requires_grad_()
    ours = wall_attention(q, k, v, reset, scale=0.5)
    truth = by_loops("wall", q, k, v, reset, 0.5)
    torch.testing.assert_close(ours, truth)
    mine, theirs = (gradients(out, [q, k, v], torch.ones_like(out)) for out in (ours, truth))
    torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        few = wall_attention(q[:, :, -2:], k, v, reset, scale=0.5)
    torch.testing.assert_close(few, truth[:, :, -2:])


def test_directions_that_were_rounded_mirror_all_the_same():
    """Others normalise before they round: what is no unit vector grows over a long row."""
    n, d = 1500, 8
    q, k, v = (torch.randn(1, 1, n, d) for _ in range(3))
    w, beta = torch.randn(1, 1, n, d).bfloat16(), torch.full((1, 1, n), 2.0, dtype=torch.bfloat16)
    ours = path_attention(q, k, v, w, beta)
    truth = path_attention(*(t.double() for t in (q, k, v, w, beta)), backend="reference")
    torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=1e-4)


def test_zeros_leave_plain_attention():
    q, k, v, _ = given("wall", 40, 40)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    zeros = torch.zeros_like(q)
    torch.testing.assert_close(wall_attention(q, k, v, zeros), plain)
    torch.testing.assert_close(path_attention(q, k, v, q, zeros[..., 0]), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_hide_keys_and_leave_what_their_tokens_do(kind, small):
    tensors = given(kind, 20, 26, b=2)
    keys, pairs = torch.rand(2, 26) > 0.3, torch.rand(2, 2, 20, 26) > 0.4
    pairs[0, 1, 3] = False
    for mask, allowed in (
        (keys, lambda b, h, i, j: keys[b, j]),
        (pairs, lambda b, h, i, j: pairs[b, h, i, j]),
        (pairs[:1, :, :, :], lambda b, h, i, j: pairs[0, h, i, j]),
    ):
        truth = by_loops(kind, *tensors, 0.5, allowed)
        for backend in ("reference", "tiled"):
            ours = carried_attention(kind, *tensors, scale=0.5, mask=mask, backend=backend)
            same_with_gradients(ours, truth, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_query_heads_share_key_heads(kind, small):
    tensors = given(kind, 19, 19, h=4, hk=2)
    same_with_gradients(
        carried_attention(kind, *tensors, scale=0.5), by_loops(kind, *tensors, 0.5), tensors
    )


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_as_alone(kind, small):
    q, k, v, moves = tensors = given(kind, 30, 30)
    edges = [0, 1, 18, 18, 30]
    alone = [
        by_loops(kind, *(t[:, :, a:z] for t in (q, k, v, moves)), 0.5)
        for a, z in pairwise(edges)
        if z > a
    ]
    for backend in ("reference", "tiled"):
        ours = carried_attention(
            kind, *tensors, scale=0.5, cu_seqlens=torch.tensor(edges), backend=backend
        )
        same_with_gradients(ours, torch.cat(alone, dim=2), tensors)


def test_a_bias_is_added_and_gets_gradients(small):
    row, key = (torch.randn(2, 22, dtype=torch.float64, requires_grad=True) for _ in range(2))
    table = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    pos = torch.arange(22)
    written = {
        Separable: (Separable(row, key), row[:, :, None] - key[:, None]),
        ByDistance: (
            ByDistance(table, pos, pos),
            table[:, (pos[:, None] - pos).clamp(0, 6)],
        ),
    }
    for vectors, (terms, dense) in zip(([row, key], [table]), written.values(), strict=True):
        for kind in KINDS:
            tensors = given(kind, 22, 22)
            ours = carried_attention(kind, *tensors, scale=0.5, bias=terms)
            truth = by_loops(kind, *tensors, 0.5, bias=dense)
            same_with_gradients(ours, truth, [*tensors, *vectors])


def test_keys_before_those_of_the_bias_have_none(small):
    tensors = given("path", 22, 22)
    row, key = (torch.randn(2, n, dtype=torch.float64) for n in (22, 3))
    dense = torch.nn.functional.pad(row[:, :, None] - key[:, None], (19, 0))
    ours = carried_attention("path", *tensors, scale=0.5, bias=Separable(row, key))
    torch.testing.assert_close(ours, by_loops("path", *tensors, 0.5, bias=dense))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("i", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_queries_beside_a_cache_are_as_in_the_whole(kind, i, dtype):
    with torch.no_grad():
        q, k, v, moves = given(kind, 40, 40, dtype=dtype)
        whole = carried_attention(kind, q, k, v, moves)
        few = carried_attention(kind, q[:, :, -i:], k, v, moves)
    torch.testing.assert_close(few, whole[:, :, -i:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_numbers_are_computed_in_float32_and_rounded_once(kind, dtype, small):
    q, k, v, moves = given(kind, 30, 30, dtype=torch.float32)
    narrow = [t.detach().to(dtype) for t in (q, k, v)]
    ours = carried_attention(kind, *narrow, moves)
    assert ours.dtype == dtype
    exact = carried_attention(kind, *(t.double() for t in narrow), moves.double())
    torch.testing.assert_close(ours.double(), exact, atol=0.0, rtol=torch.finfo(dtype).eps)
    with torch.autocast("cpu", torch.bfloat16):
        assert carried_attention(kind, q, k, v, moves).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["q", "k", "v", "moves"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_not_finite_reaches_the_rows_that_meet_it_and_no_others(kind, name, small):
    tensors = dict(zip(("q", "k", "v", "moves"), given(kind, 24, 24), strict=True))
    calm = carried_attention(kind, **tensors)
    broken = {n: t.detach().clone() for n, t in tensors.items()}
    broken[name][0, 1, 13, 2] = torch.nan
    leaves = {n: t.requires_grad_() for n, t in broken.items()}
    out = carried_attention(kind, **leaves)
    meets = torch.zeros(1, 2, 24, dtype=torch.bool)
    meets[0, 1, 13 : 14 if name == "q" else None] = True
    assert torch.equal(out.isnan().any(-1), meets)
    torch.testing.assert_close(out[~meets], calm[~meets])
    with torch.no_grad():
        few = carried_attention(kind, leaves["q"][:, :, -2:], *list(leaves.values())[1:])
    assert torch.equal(few.isnan().any(-1), meets[..., -2:])
    grads = torch.autograd.grad(out[:, 0].sum(), list(leaves.values()))
    expected = torch.autograd.grad(calm[:, 0].sum(), list(tensors.values()))
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine[:, 0], theirs[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_and_forward_mode_are_answered_by_the_definition(kind, small):
    q, k, v, moves = (t.detach() for t in given(kind, 9, 9))

    def loss(q, moves):
        return carried_attention(kind, q, k, v, moves).square().sum()

    expected = grad(lambda q: by_loops(kind, q, k, v, moves, 0.5).square().sum())(q)
    torch.testing.assert_close(grad(loss)(q, moves), expected)
    several = torch.stack((moves, moves / 2))
    each = torch.stack([loss(q, one) for one in several])
    torch.testing.assert_close(vmap(loss, (None, 0))(q, several), each)
    _, along = jvp(loss, (q, moves), (q, torch.zeros_like(moves)))
    torch.testing.assert_close(along, (expected * q).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_is_what_pytorch_asks_of_one(kind):
    q, k, v, moves = given(kind, 20, 20, dtype=torch.float32)
    for sink in (None, torch.zeros(2, requires_grad=True)):
        arguments = (q, k, v, moves, sink, None, [], "", kind, 0.5)
        torch.library.opcheck(torch.ops.xcope.carried, arguments, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda q, m: carried_attention("path", q, q, q, m[..., :-1]), "w must be"),
        (lambda q, m: wall_attention(q, q, q, m), "log_decay must be"),
        (lambda q, m: wall_attention(q, q, q, q.long()), "floating point"),
        (lambda q, m: path_attention(q, q, q, q, q), "beta"),
        (lambda q, m: wall_attention(q, q, q, q, backend="tilde"), "did you mean 'tiled'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, said):
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(FlagError, match=said):
        call(q, torch.randn(1, 2, 5, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_is_nothing_out(kind):
    for i, j, b in ((0, 0, 1), (0, 4, 1), (3, 3, 0)):
        tensors = given(kind, i, j, b=b)
        assert carried_attention(kind, *tensors).shape == (b, 2, i, 4)
