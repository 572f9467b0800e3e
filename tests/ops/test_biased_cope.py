"""CoPE with a bias of the logits: the definition, and the tiled backend that equals it."""

import dataclasses

import pytest
import torch
from biased_terms import FORMS, leaves, make_terms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from ways import WAYS, take

from xcope.errors import FlagError
from xcope.ops.biased import dense
from xcope.ops.cope import CopeInputs, cope_attention, position_bias
from xcope.ops.cope.operator import cope


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    return take(request.param, monkeypatch)


def inputs(b=1, h=2, hk=None, i=40, j=None, d=8, p=8):
    hk, j = hk or h, j or i
    shapes = {"q": (b, h, i, d), "k": (b, hk, j, d), "v": (b, hk, j, d), "pos_emb": (p, d)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def run(backend, dtype, tensors, terms, **options):
    """Output and all gradients by name, in float64."""
    wanted = {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items()}
    bias, vectors = leaves(terms, dtype)
    out = cope_attention(**wanted, bias=bias, backend=backend, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    wanted |= vectors
    grads = torch.autograd.grad((out.double() * weights).sum(), list(wanted.values()))
    return dict(zip(["out", *wanted], [t.detach().double() for t in (out, *grads)], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_gates_are_made_of_the_biased_logits(form):
    q, k, v, e = (t.double() for t in inputs(2, 2, i=5, j=9).values())
    terms = make_terms(form, 2, 2, 5, 9, free=1)
    seen = torch.ones(5, 9, dtype=torch.bool).tril(4)
    logits = 8**-0.5 * q @ k.mT + dense(terms, 9)
    logits = logits + position_bias(q, logits, e, seen)
    truth = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(cope_attention(q, k, v, e, bias=terms, backend="reference"), truth)


def test_gates_of_their_own_keys_are_not_biased():
    q, k, v, e = (t.double() for t in inputs(1, 2, i=6).values())
    gate_k = torch.randn_like(k)
    terms = make_terms("separable", 1, 2, 6, 6)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    logits = 8**-0.5 * q @ k.mT + dense(terms)
    logits = logits + position_bias(q, 8**-0.5 * q @ gate_k.mT, e, seen)
    truth = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    ours = cope_attention(q, k, v, e, bias=terms, gate_k=gate_k, backend="reference")
    torch.testing.assert_close(ours, truth)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(FORMS),
    b=st.integers(1, 3),
    heads=st.sampled_from([(2, 2), (4, 2)]),
    i=st.sampled_from([1, 15, 17, 50]),
    extra=st.sampled_from([0, 1, 100]),
    p=st.sampled_from([1, 5, 64]),
    free=st.sampled_from([0, 1, 70]),
    batched=st.booleans(),
    masked=st.booleans(),
    causal=st.booleans(),
    gates=st.booleans(),
    mixed=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiled_equals_the_definition(
    way, dtype, form, b, heads, i, extra, p, free, batched, masked, causal, gates, mixed, seed
):
    torch.manual_seed(seed)
    (h, hk), j = heads, i + extra
    tensors = inputs(b, h, hk, i, j, p=p)
    if gates:
        tensors["gate_k"] = torch.randn_like(tensors["k"])
    if mixed:
        tensors["head_mix"] = torch.randn(h, h)
    terms = make_terms(form, b, h, i, j, min(free, extra), batched, gaps=True, distances=30)
    options = {"mask": torch.rand(b, j) > 0.4 if masked else None, "causal": causal}
    truth = run("reference", torch.float64, tensors, terms, **options)
    rounded = run("reference", dtype, tensors, terms, **options)
    ours = run("tiled", dtype, tensors, terms, **options)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for name, true in truth.items():
        error, own = (ours[name] - true).norm(), (rounded[name] - true).norm()
        allowed = tolerance * (true.norm() + 0.05 * true.numel() ** 0.5) + 2 * own
        assert error <= allowed, f"{name}: {error:.1e}, {allowed:.1e} allowed"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("i", [1, 8])
def test_a_few_queries_without_gradients(form, gates, i):
    tensors = inputs(2, 4, 2, i, 300)
    if gates:
        tensors["gate_k"] = torch.randn_like(tensors["k"])
    terms, _ = leaves(make_terms(form, 2, 4, i, 300, free=2), torch.float32)
    with torch.no_grad():
        ours, truth = (
            cope_attention(**tensors, bias=terms, backend=b) for b in ("tiled", "reference")
        )
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form):
    terms, _ = leaves(make_terms(form, 2, 4, 40, 50, free=2), torch.float32)
    tensors = {n: t.requires_grad_() for n, t in inputs(2, 4, 2, 40, 50).items()}
    given = CopeInputs(**tensors, bias=terms, scale=0.25)
    opcheck(cope, (*given.flat(), "tiled"))


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    terms, vectors = leaves(make_terms("by_distance", 1, 2, 40, 40), torch.float32)
    given = [*(t.requires_grad_() for t in inputs().values()), *vectors.values()]

    def attention(q, k, v, e, table):
        return cope_attention(q, k, v, e, bias=dataclasses.replace(terms, table=table))

    whole = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(
        *(torch.autograd.grad(f(*given).square().sum(), given) for f in (whole, attention)),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def test_a_bias_that_does_not_fit_is_named():
    with pytest.raises(FlagError, match=r"row \(3 40\) of the bias"):
        cope_attention(**inputs(), bias=make_terms("separable", h=3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("i", [1, 7, 19, 100])
def test_queries_that_fill_no_vector_behind_cached_keys(way, form, i):
    """What stands in the place of a missing query must count nothing, whatever its bias."""
    tensors = inputs(i=i, j=i + 50, p=30)
    terms = make_terms(form, i=i, j=i + 50)
    if form == "by_distance":
        terms = dataclasses.replace(terms, table=5 * terms.table)
    truth = run("reference", torch.float64, tensors, terms)
    ours = run("tiled", torch.float32, tensors, terms)
    for name, true in truth.items():
        assert (ours[name] - true).norm() <= 1e-3 * true.norm() + 1e-4, name
