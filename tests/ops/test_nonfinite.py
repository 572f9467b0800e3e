"""Numbers that are not finite reach the rows that see them, and no others."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from biased_terms import leaves, make_terms
from by_rows import biased_by_rows, cope_by_rows
from ways import small_tiles

from xcope.ops.biased import biased_attention, dense
from xcope.ops.cope import cope_attention
from xcope.ops.nonfinite import scores, weighted_sums

pytestmark = pytest.mark.long

NAN, INF = float("nan"), float("inf")
SCALE = 8**-0.5

BACKENDS = {
    "definition": ("reference", torch.float32),
    "compiled": ("tiled", torch.float32),
    "eager": ("tiled", torch.float64),
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    small_tiles(monkeypatch)


def inputs(n, gates=False, mixed=False):
    q, dout = torch.randn(2, 2, n, 8), torch.randn(2, 2, n, 8)
    k, v = torch.randn(2, 1, n + 2, 8), torch.randn(2, 1, n + 2, 8)
    tensors = {"q": q, "k": k, "v": v, "pos_emb": torch.randn(4, 8)}
    if gates:
        tensors["gate_k"] = torch.randn_like(k)
    if mixed:
        tensors["head_mix"] = torch.randn(2, 2)
    return tensors, dout


def spoiled(tensors, dout, name, number):
    """The same with one number of a tensor, or of the gradient of out, replaced."""
    tensors, dout = {n: t.clone() for n, t in tensors.items()}, dout.clone()
    t = dout if name == "dout" else tensors[name]
    place = (0,) * (t.ndim - 2) + (1 if name == "head_mix" else t.shape[-2] // 2, 1)
    t[place] = number
    return tensors, dout


def run(attention, tensors, dout, dtype):
    """Output and gradients by name, in float64."""
    given = {n: t.to(dtype, copy=True).requires_grad_() for n, t in tensors.items()}
    out = attention(**given)
    grads = torch.autograd.grad(out, list(given.values()), dout.to(dtype))
    return {"out": out.detach().double()} | {
        n: g.double() for n, g in zip(given, grads, strict=True)
    }


def assert_same(ours, truth):
    """Finite at the same places, and equal there."""
    for name, true in truth.items():
        finite = true.isfinite()
        assert torch.equal(ours[name].isfinite(), finite), name
        torch.testing.assert_close(ours[name][finite], true[finite], rtol=1e-3, atol=1e-3)


def seen_of(n, j, mask, causal):
    seen = torch.ones(n, j, dtype=torch.bool)
    seen = (seen.tril(j - n) if causal else seen).expand(2, 2, n, j)
    return seen if mask is None else seen & mask[:, None, None]


def masked(n):
    """Of n + 2 keys, with the one that `spoiled` spoils hidden from the first row of the batch."""
    mask = torch.rand(2, n + 2) > 0.3
    mask[0, (n + 2) // 2] = False
    return mask


COPE = [
    ({}, {}),
    ({"mask": True}, {}),
    ({"causal": False}, {}),
    ({"mask": True}, {"gates": True}),
    ({}, {"gates": True, "mixed": True}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "kind"), COPE, ids=str)
@pytest.mark.parametrize("n", [5, 21])
def test_cope_is_that_of_the_visible_keys_alone(backend, options, kind, n):
    whole, dout = inputs(n, **kind)
    mask, causal = masked(n) if options.get("mask") else None, options.get("causal", True)
    seen = seen_of(n, n + 2, mask, causal)
    name, dtype = BACKENDS[backend]
    for at, number in itertools.product([*whole, "dout"], [NAN, INF, -INF][: 3 if n == 5 else 1]):
        tensors, grad = spoiled(whole, dout, at, number)
        truth = run(
            lambda **given: cope_by_rows(**given, seen=seen, scale=SCALE),
            tensors, grad, torch.float64,
        )  # fmt: skip

        def attention(**given):
            return cope_attention(**given, mask=mask, causal=causal, backend=name)

        ours = run(attention, tensors, grad, dtype)
        assert_same(ours, truth)
        with torch.no_grad():
            given = {n: t.to(dtype) for n, t in tensors.items()}
            assert_same({"out": attention(**given).double()}, {"out": truth["out"]})


@pytest.mark.parametrize("form", [None, "separable", "by_distance", "piecewise"])
@pytest.mark.parametrize("options", [{}, {"mask": True}, {"causal": False}], ids=str)
@pytest.mark.parametrize("n", [5, 21])
def test_attention_with_a_bias_is_that_of_the_visible_keys_alone(form, options, n):
    whole, dout = inputs(n)
    del whole["pos_emb"]
    terms = make_terms(form, 2, 2, n, n + 2, free=1, distances=5) if form else None
    vectors = list(leaves(terms, torch.float32)[1])
    mask, causal = masked(n) if options.get("mask") else None, options.get("causal", True)
    seen = seen_of(n, n + 2, mask, causal)
    for at, number in itertools.product([*whole, *vectors], [NAN, -INF]):
        tensors, grad, bias = whole, dout, terms
        if at in whole:
            tensors, grad = spoiled(whole, dout, at, number)
        else:
            vector = getattr(terms, at).clone()
            vector[(0,) * (vector.ndim - 1) + (2,)] = number
            bias = dataclasses.replace(terms, **{at: vector})
        assert_of_visible_keys(tensors, grad, bias, seen, mask=mask, causal=causal)


def assert_of_visible_keys(tensors, dout, terms, seen, **options):
    """Attention with this bias on all backends, with gradients and without."""

    def by_rows(q, k, v, **given):
        its = dataclasses.replace(terms, **given) if given else None
        written = None if its is None else dense(its, k.shape[2]).expand(seen.shape)
        return biased_by_rows(q, k, v, written, seen, SCALE)

    def attention(q, k, v, *, backend, **given):
        its = dataclasses.replace(terms, **given) if given else None
        return biased_attention(q, k, v, its, backend=backend, **options)

    vectors = {n: t.detach() for n, t in leaves(terms, torch.float64)[1].items()}
    truth = run(by_rows, tensors | vectors, dout, torch.float64)
    for backend, dtype in [*BACKENDS.values(), ("auto", torch.float32)]:
        ours = partial(attention, backend=backend)
        assert_same(run(ours, tensors | vectors, dout, dtype), truth)
        with torch.no_grad():
            out = ours(**{n: t.to(dtype) for n, t in (tensors | vectors).items()})
        assert_same({"out": out.double()}, {"out": truth["out"]})


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("attention", ["cope", "biased", "plain"])
def test_other_rows_do_not_change_by_a_bit(attention, n, name, grad):
    tensors, _ = inputs(n)
    tensors = {n: t.requires_grad_(grad) for n, t in tensors.items()}
    bad = {n: t.detach().clone() for n, t in tensors.items()}
    bad[name][0, 0, n // 2] = NAN
    bad = {n: t.requires_grad_(grad) for n, t in bad.items()}

    def attend(q, k, v, pos_emb):
        if attention == "cope":
            return cope_attention(q, k, v, pos_emb)
        terms = make_terms("by_distance", 2, 2, n, n + 2) if attention == "biased" else None
        torch.manual_seed(1)
        table = {"table": torch.randn(2, 60)} if terms else {}
        k, v = (k[:, :, :n], v[:, :, :n]) if terms is None else (k, v)
        return biased_attention(q, k, v, dataclasses.replace(terms, **table) if terms else None)

    before, after = attend(**tensors), attend(**bad)
    first = n // 2 if attention == "plain" else n // 2 - 2  # queries stand at the last keys
    assert after[0, :, first:].isnan().any(-1).all()
    assert torch.equal(after[0, :, :first], before[0, :, :first])
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_do_not_meet_each_others_numbers(backend):
    name, dtype = BACKENDS[backend]
    q, k, v = (torch.randn(1, 2, 40, 8, dtype=dtype) for _ in range(3))
    e, cu_seqlens = torch.randn(4, 8, dtype=dtype), torch.tensor([0, 11, 30, 40])
    k[0, 1, 15] = NAN
    v[0, 0, 20] = NAN
    for out in (
        cope_attention(q, k, v, e, cu_seqlens=cu_seqlens, causal=False, backend=name),
        biased_attention(q, k, v, None, cu_seqlens=cu_seqlens, causal=False, backend=name),
    ):
        assert out[:, :, 11:30].isnan().all()
        assert out[:, :, :11].isfinite().all()
        assert out[:, :, 30:].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_overflow_are_infinite_and_not_masked(backend):
    name, dtype = BACKENDS[backend]
    huge = 1e25 if dtype == torch.float32 else 1e200
    q = torch.full((1, 1, 12, 8), huge, dtype=dtype)
    k, v = -q.clone(), torch.randn_like(q)
    e = torch.zeros(4, 8, dtype=dtype)
    for sign in (1, -1):
        for out in (
            cope_attention(q, sign * k, v, e, backend=name),
            biased_attention(q, sign * k, v, None, backend=name),
        ):
            assert out.isnan().all()


def test_sums_over_visible_pairs_have_derivatives_of_any_order():
    seen = torch.rand(2, 3, 4) > 0.4
    x, y = (torch.randn(2, n, 5, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    w = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for function, given in (
        (lambda x, y: scores(x, y, seen), (x, y)),
        (lambda w, y: weighted_sums(w, y, seen), (w, y)),
    ):
        assert torch.autograd.gradcheck(function, given, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, given)
    together = scores(x, y, seen)
    apart = torch.vmap(scores)(x, y, seen)
    torch.testing.assert_close(together, apart)


# -- Triton's kernels ----------------------------------------------------------------------------


@pytest.fixture
def _small_kernels(monkeypatch):
    triton = pytest.importorskip("xcope.ops.cope.gpu.launch", reason="Triton is not installed")
    tuning = pytest.importorskip("xcope.ops.cope.gpu.tuning")
    if not tuning.INTERPRETED:
        pytest.skip("the kernels are compiled here: scripts/gpu_check.py tests them")
    small = tuning.Choice(
        forward=(tuning.Tiles(16, 32, 4, 1, 16),),
        backward_q=(tuning.Tiles(32, 32, 4, 1, 16),),
        backward_k=(tuning.Tiles(16, 32, 4, 1),),
        backward_k_plain=(tuning.Tiles(16, 64, 4, 1),),
        piece=16,
    )
    monkeypatch.setattr(triton, "choice", lambda *_: small)


@pytest.mark.usefixtures("_small_kernels")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"mask": True}, {"causal": False}, {"packed": True}])
@pytest.mark.parametrize("at", ["q", "k", "v", "dout"])
def test_the_kernels_keep_what_is_not_finite_where_it_is_seen(options, at):
    """Rows that are not finite are so as a whole; sums over a tile's rows may be, too."""
    n = 36
    q, dout = torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)
    tensors = {"q": q, "k": torch.randn(1, 1, n, 8), "v": torch.randn(1, 1, n, 8)}
    tensors["pos_emb"] = torch.randn(3, 8)
    tensors, dout = spoiled(tensors, dout, at, NAN)
    causal, given = options.get("causal", True), {}
    seen = torch.ones(n, n, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    if options.get("mask"):
        given["mask"] = torch.rand(1, n) > 0.3
        given["mask"][0, n // 2] = False
        seen = seen & given["mask"]
    if options.get("packed"):
        given["cu_seqlens"] = torch.tensor([0, 12, 30, n])
        seen = seen & torch.block_diag(*(torch.ones(m, m) for m in (12, 18, n - 30))).bool()
    truth = run(
        lambda **its: cope_by_rows(**its, seen=seen[None, None], scale=SCALE),
        tensors, dout, torch.float64,
    )  # fmt: skip
    ours = run(
        lambda **its: cope_attention(**its, causal=causal, backend="triton", **given),
        tensors, dout, torch.float32,
    )  # fmt: skip
    for name in ("out", "q"):
        finite = truth[name].isfinite().all(-1)
        assert torch.equal(ours[name].isfinite().all(-1), finite), name
        torch.testing.assert_close(ours[name][finite], truth[name][finite], rtol=1e-3, atol=1e-3)
    for name in ("k", "v", "pos_emb"):
        assert not (ours[name].isfinite() & ~truth[name].isfinite()).any(), name


@pytest.mark.usefixtures("_small_kernels")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_the_kernels_tell_rows_that_see_nothing_from_logits_that_are_all_infinite():
    q = torch.full((1, 1, 20, 8), 1e25)
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, :5] = False
    out = cope_attention(q, -q, torch.randn_like(q), torch.zeros(4, 8), mask=mask, backend="triton")
    assert not out[0, 0, :5].any()
    assert out[0, 0, 5:].isnan().all()
