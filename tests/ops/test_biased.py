"""Attention with an index bias: the definition, and the tiled backend that equals it."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from biased_terms import FORMS, leaves, make_terms
from by_rows import biased_by_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ways import WAYS, take

from xcope.ops.biased import BiasedInputs, Piecewise, Separable, biased_attention, dense
from xcope.ops.biased.reference import biased_attention_reference


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    return take(request.param, monkeypatch)


def inputs(b=1, h=2, hk=None, i=40, j=None, d=8, dv=None):
    hk, j, dv = hk or h, j or i, dv or d
    return [torch.randn(b, n, m, w) for n, m, w in ((h, i, d), (hk, j, d), (hk, j, dv))]


def run(backend, dtype, tensors, terms, **options):
    """Output and all gradients by name, in float64."""
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in tensors)
    short = torch.promote_types(dtype, torch.float32)
    bias, vectors = leaves(terms, short)
    out = biased_attention(q, k, v, bias, backend=backend, **options)
    assert out.dtype == dtype
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    wanted = {"q": q, "k": k, "v": v, **vectors}
    grads = torch.autograd.grad((out.double() * weights).sum(), list(wanted.values()))
    return dict(zip(["out", *wanted], [t.detach().double() for t in (out, *grads)], strict=True))


def assert_exact(tensors, terms, dtype=torch.float32, **options):
    truth = run("reference", torch.float64, tensors, terms, **options)
    ours = run("tiled", dtype, tensors, terms, **options)
    tolerance = 1e-10 if dtype == torch.float64 else 5e-5
    for name, true in truth.items():
        torch.testing.assert_close(
            ours[name], true, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# -- the definition ------------------------------------------------------------------------------


def at(t, dims, b, *index):
    """An entry of a vector with so many dimensions, and one more where each row has its own."""
    return float((t if t.ndim == dims else t[b])[index])


def in_words(terms, b, h, i, j):
    """b_ij of one row of the batch and head as `xcope.ops.terms` has it."""
    if isinstance(terms, Separable):
        return at(terms.row, 2, b, h, i) - at(terms.key, 2, b, h, j)
    table = terms.warp if isinstance(terms, Piecewise) else terms.table[h]
    distance = int(at(terms.q_pos, 1, b, i) - at(terms.k_pos, 1, b, j))
    entry = float(table[min(max(distance, 0), len(table) - 1)])
    if not isinstance(terms, Piecewise):
        return entry
    t = entry * at(terms.shrink, 1, b, i)
    s = sum(float(knot) <= t for knot in terms.knots)
    return float(terms.slope[h, s]) * t + float(terms.offset[h, s])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("free", [0, 2])
def test_dense_is_the_formula(form, batched, free):
    terms = make_terms(form, 2, 2, 4, 7, free, batched, gaps=True, distances=5)
    ours = dense(terms, 7).expand(2, 2, 4, 7)
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, (2, 2, 4, 7))).tolist():
        true = in_words(terms, b, h, i, j - free) if j >= free else 0.0
        assert float(ours[b, h, i, j]) == pytest.approx(true)


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("masked", [None, "keys", "all", "documents"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_is_the_formula_row_by_row(form, masked, causal):
    b, i, j, free = (1, 9, 9, 2) if masked == "documents" else (2, 5, 9, 2)
    q, k, v = (t.double() for t in inputs(b, 4, 2, i, j, dv=3))
    terms = make_terms(form, b, 4, i, j, free, gaps=True, distances=5) if form else None
    seen = torch.ones(i, j, dtype=torch.bool).tril(j - i) if causal else torch.ones(i, j).bool()
    mask = {"keys": torch.rand(b, j) > 0.4, "all": torch.rand(b, 1, i, j) > 0.4}.get(masked)
    record = BiasedInputs(q=q, k=k, v=v, bias=terms, scale=0.7, mask=mask, causal=causal)
    if masked == "documents":
        document = torch.tensor([0, 0, 0, 1, 3, 3, 3, 3, 4])
        edges = torch.tensor([0, 3, 4, 4, 8, 9])
        record = dataclasses.replace(record, cu_seqlens=edges)
        seen = seen & (document[:, None] == document)
    elif masked:
        seen = seen & (mask[:, None, None] if masked == "keys" else mask)
    bias = torch.zeros(b, 4, i, j, dtype=torch.float64)
    for row, head, query, key in itertools.product(*map(range, bias.shape)):
        if form and key >= free:
            bias[row, head, query, key] = in_words(terms, row, head, query, key - free)
    truth = biased_by_rows(q, k, v, bias, seen, 0.7)
    torch.testing.assert_close(biased_attention_reference(record), truth)


@pytest.mark.parametrize("form", FORMS)
def test_reference_is_softmax_of_the_biased_logits(form):
    q, k, v = (t.double() for t in inputs(2, 4, 2, 5, 9))
    terms = make_terms(form, 2, 4, 5, 9)
    seen = torch.ones(5, 9, dtype=torch.bool).tril(4)
    out = biased_attention_reference(BiasedInputs(q=q, k=k, v=v, bias=terms, scale=0.7))
    for a in range(4):
        logits = 0.7 * q[:, a] @ k[:, a // 2].mT + dense(terms)[a]
        truth = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, a // 2]
        torch.testing.assert_close(out[:, a], truth)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_reference(form):
    terms, vectors = leaves(make_terms(form, 1, 2, 4, 6, free=1, distances=4), torch.float64)
    tensors = [t.double().requires_grad_() for t in inputs(1, 2, 1, 4, 6, 3, 2)]

    def attention(q, k, v, *vectors_):
        bias = dataclasses.replace(terms, **dict(zip(vectors, vectors_, strict=True)))
        return biased_attention(q, k, v, bias, backend="reference")

    assert torch.autograd.gradcheck(attention, [*tensors, *vectors.values()])


# -- the tiled backend ---------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from([*FORMS, None]),
    b=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)]),
    i=st.sampled_from([1, 2, 15, 16, 17, 50, 90]),
    extra=st.sampled_from([0, 1, 40, 200]),
    dv=st.sampled_from([8, 12]),
    free=st.sampled_from([0, 1, 33]),
    batched=st.booleans(),
    gaps=st.booleans(),
    distances=st.sampled_from([1, 2, 30, 100, 400]),
    masked=st.sampled_from([None, "keys", "all"]),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(
    way, dtype, form, b, heads, i, extra, dv, free, batched, gaps, distances, masked, causal, seed
):
    torch.manual_seed(seed)
    (h, hk), j = heads, i + extra
    terms = None
    if form:
        few = min(free, extra)
        terms = make_terms(form, b, h, i, j, few, batched, gaps, distances)
    mask = {
        None: None,
        "keys": torch.rand(b, j) > 0.5,
        "all": torch.rand(1, h, i, j) > 0.5,
    }[masked]
    assert_exact(inputs(b, h, hk, i, j, 8, dv), terms, dtype, mask=mask, causal=causal)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_keys_than_queries(way, form, dtype):
    assert_exact(inputs(i=70, j=20), make_terms(form, i=70, j=20), dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("batched", [False, True])
def test_tiles_of_the_usual_size(form, threads, batched):
    torch.set_num_threads(threads)
    tensors = inputs(2, 2, 1, 300, 1500, 16)
    terms = make_terms(form, 2, 2, 300, 1500, 5, batched, distances=200)
    assert_exact(tensors, terms)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_see_no_key_give_zeros(way, form):
    mask = torch.rand(2, 40) > 0.3
    mask[0, :20] = False
    found = run("tiled", torch.float32, inputs(b=2), make_terms(form, b=2), mask=mask)
    assert not found["out"][0, :, :20].any()
    assert all(t.isfinite().all() for t in found.values())
    assert not found["q"][0, :, :20].any()


@pytest.mark.parametrize("form", FORMS)
def test_large_logits(way, form):
    """Logits of ±1e3 and biases of as much: rows attend to a key or two."""
    q, k, v = inputs(i=90)
    terms = make_terms(form, i=90)
    scaled = {n: 300 * getattr(terms, n) for n in ("row", "key", "table") if hasattr(terms, n)}
    truth = run("reference", torch.float64, (300 * q, k, v), dataclasses.replace(terms, **scaled))
    ours = run("tiled", torch.float32, (300 * q, k, v), dataclasses.replace(terms, **scaled))
    for name, true in truth.items():
        size = 1e3 if name in ("k", "row", "key", "table", "slope", "warp", "shrink") else 1
        assert (ours[name] - true).norm() <= 1e-3 * (true.norm() + size), name


def test_a_steep_separable_bias_keeps_its_differences(way):
    """Row and key of 1e5, whose differences are small near the diagonal."""
    steep = 1024.0 * torch.arange(100, dtype=torch.float64).expand(2, 100)
    near = make_terms("separable", i=100, j=100)
    terms = Separable(-steep + near.row.round(), -steep + near.key.round())
    assert_exact(inputs(i=100), terms)


@pytest.mark.parametrize("form", FORMS)
def test_inputs_that_are_not_contiguous(way, form):
    tensors, terms = inputs(i=50), make_terms(form, i=50, j=50)
    strided = [t.mT.contiguous().mT for t in tensors]
    vectors = {
        f.name: getattr(terms, f.name).repeat_interleave(2, dim=-1)[..., ::2]
        for f in dataclasses.fields(terms)
    }
    for ours, same in zip(
        run("tiled", torch.float32, strided, dataclasses.replace(terms, **vectors)).values(),
        run("tiled", torch.float32, tensors, terms).values(),
        strict=True,
    ):
        torch.testing.assert_close(ours, same)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", ["q", "v", "bias"])
def test_gradient_of_one_input_alone(way, form, wanted):
    (q, k, v), terms = inputs(i=50), make_terms(form, i=50, j=50)
    truth = run("tiled", torch.float32, (q, k, v), terms)
    bias, vectors = leaves(terms, torch.float32)
    named = {"q": q, "k": k, "v": v, **vectors}
    wanted = list(vectors)[-1] if wanted == "bias" else wanted
    for name, t in named.items():
        t.requires_grad_(name == wanted)
    out = biased_attention(q, k, v, bias, backend="tiled")
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    (grad,) = torch.autograd.grad((out.double() * weights).sum(), named[wanted])
    torch.testing.assert_close(grad.double(), truth[wanted])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_low_precision_rounds_as_the_definition_does(way, form, dtype):
    tensors, terms = [t.to(dtype) for t in inputs(i=60, d=16)], make_terms(form, i=60, j=60)
    truth = run("reference", torch.float64, tensors, terms)
    ours, reference = (run(backend, dtype, tensors, terms) for backend in ("tiled", "reference"))
    for name, true in truth.items():
        rounding = (reference[name] - true).norm()
        allowed = 1.5 * rounding + 1e-4 * true.norm() + 1e-5  # a row's gradient is 0
        assert (ours[name] - true).norm() <= allowed, name


def test_a_table_that_ends_early_is_not_looked_up_in_far_tiles(way):
    """Past its end every entry but the last may be anything."""
    q, k, v = inputs(i=200)
    terms = make_terms("by_distance", i=200, j=200, distances=20)
    longer = torch.cat([terms.table, terms.table[:, -1:].expand(-1, 300)], dim=1)
    short, long = (
        run("tiled", torch.float32, (q, k, v), dataclasses.replace(terms, table=table))
        for table in (terms.table, longer)
    )
    for name in ("out", "q", "k", "v"):
        torch.testing.assert_close(short[name], long[name], rtol=1e-5, atol=1e-5)
    folded = long["table"][:, :20].clone()
    folded[:, -1] += long["table"][:, 20:].sum(-1)
    torch.testing.assert_close(short["table"], folded, rtol=1e-4, atol=1e-4)


def test_cached_keys_give_the_last_rows_of_the_whole(way):
    q, k, v = inputs(i=60)
    for form in FORMS:
        terms = make_terms(form, i=60, j=60)
        whole = biased_attention(q, k, v, terms)
        for last in (1, 5, 20):
            names = [n for n in ("row", "q_pos", "shrink") if hasattr(terms, n)]
            end = dataclasses.replace(terms, **{n: getattr(terms, n)[..., -last:] for n in names})
            ours = biased_attention(q[:, :, -last:], k, v, end)
            torch.testing.assert_close(ours, whole[:, :, -last:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("hk", [4, 2])
def test_without_bias_it_is_plain_attention(causal, hk):
    q, k, v = inputs(2, 4, hk, 33)
    groups = 4 // hk
    truth = F.scaled_dot_product_attention(
        q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), is_causal=causal
    )
    for backend in ("auto", "tiled", "reference"):
        out = biased_attention(q, k, v, None, causal=causal, backend=backend)
        torch.testing.assert_close(out, truth)
