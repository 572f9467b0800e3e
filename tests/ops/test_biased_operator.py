"""Attention with an index bias as a PyTorch operator, the choice of a backend, bad input."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from biased_terms import FORMS, leaves, make_terms
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from xcope.errors import FlagError
from xcope.ops import biased, compiled, fallback
from xcope.ops.biased import ByDistance, Piecewise, Separable, biased_attention, operator
from xcope.ops.biased.gpu import flex, flex_tiles
from xcope.ops.inputs import FEW
from xcope.ops.terms import flatten
from xcope.ops.tiling import tiles


def tensors(i=40, j=50, **options):
    shapes = ((2, 4, i, 16), (2, 2, j, 16), (2, 2, j, 16))
    return [torch.randn(shape, **options) for shape in shapes]


def case(form, dtype=torch.float32, **options):
    """An attention of q, k, v and the vectors of a form, and these."""
    terms, vectors = leaves(make_terms(form, 2, 4, 40, 50, free=3), dtype)

    def attention(q, k, v, *given):
        bias = dataclasses.replace(terms, **dict(zip(vectors, given, strict=True)))
        return biased_attention(q, k, v, bias, **options)

    given = [*tensors(dtype=dtype), *vectors.values()]
    return attention, [t.requires_grad_() for t in given]


def gradients(function, given):
    return torch.autograd.grad(function(*given).square().sum(), given)


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(form, masked):
    terms = make_terms(form, 2, 4, 40, 50, free=3, batched=True) if form else None
    terms, _ = leaves(terms, torch.float32)
    name, vectors = flatten(terms)
    mask = torch.rand(2, 1, 1, 50) > 0.3 if masked else None
    given = [t.requires_grad_() for t in tensors()]
    opcheck(operator.biased_tiled, (*given, mask, None, None, vectors, name, 0.25, True))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form, monkeypatch):
    monkeypatch.setattr(tiles, "QUERIES", 16)
    attention, given = case(form, torch.float64, backend="tiled")
    assert torch.autograd.gradcheck(attention, given, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_those_of_the_definition(form):
    seconds = []
    for backend in ("tiled", "reference"):
        torch.manual_seed(0)
        attention, given = case(form, backend=backend)
        first = torch.autograd.grad(attention(*given).square().sum(), given, create_graph=True)
        total = sum(grad.square().sum() for grad in first)
        seconds.append(torch.autograd.grad(total, given))
    for ours, truth in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-3 * float(truth.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_compiles_without_a_graph_break(form):
    torch._dynamo.reset()
    attention, given = case(form)
    whole = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(gradients(whole, given), gradients(attention, given), strict=True):
        torch.testing.assert_close(ours, plain)


def test_checkpoint():
    attention, given = case("piecewise")
    again = gradients(lambda *t: checkpoint(attention, *t, use_reentrant=False), given)
    for ours, plain in zip(again, gradients(attention, given), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form):
    attention, given = case(form)
    eye = torch.eye(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*(F.linear(t, eye) for t in given[:3]), *given[3:])
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in given)


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("i", [1, FEW])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_a_few_queries_without_gradients(form, i, masked, backend):
    q, k, v = tensors(i, 300)
    terms = make_terms(form, 2, 4, i, 300, free=3, batched=masked) if form else None
    mask = torch.rand(2, 300) > 0.4 if masked else None
    if masked:
        mask[0] = False
    given = (q, k, v, terms)
    ours = biased_attention(*given, mask=mask, backend=backend)
    truth = biased_attention(*given, mask=mask, backend="reference")
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


FLASH, COMPILED = "aten::_scaled_dot_product_flash_attention_for_cpu", "xcope::biased_tiled"


@pytest.mark.parametrize("hk", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_bias_and_without_kernels_pytorchs_flash_attention_does_it(hk, dtype):
    q, k = torch.randn(1, 4, 64, 16, dtype=dtype), torch.randn(1, hk, 64, 16, dtype=dtype)
    with profile() as profiled:
        biased_attention(q, k, k, None)
    names = {event.name for event in profiled.events()}
    kernels = compiled.takes(q)
    assert kernels == (dtype == torch.float32)
    assert (FLASH in names, COMPILED in names) == (not kernels, kernels)


@pytest.mark.parametrize("causal", [True, False])
def test_pytorchs_attention_and_ours_agree(causal, monkeypatch):
    q, k, v = (torch.randn(2, 4, 100, 16, requires_grad=True) for _ in range(3))
    found = []
    for takes in (compiled.takes, lambda q: False):
        monkeypatch.setattr(biased, "takes", takes)
        with profile() as profiled:
            out = biased_attention(q, k, v, None, causal=causal)
        found.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
        names = {event.name for event in profiled.events()}
        assert (FLASH in names) != (COMPILED in names)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["mask", "cached keys", "narrow values"])
def test_without_bias_the_rest_is_tiled(change):
    q, k, v = tensors(40, 50 if change == "cached keys" else 40)
    v = v[..., :8] if change == "narrow values" else v
    mask = torch.rand(2, 40) > 0.3 if change == "mask" else None
    with profile() as profiled:
        ours = biased_attention(q, k, v, None, mask=mask)
    assert "xcope::biased_tiled" in {event.name for event in profiled.events()}
    truth = biased_attention(q, k, v, None, mask=mask, backend="reference")
    torch.testing.assert_close(ours, truth)


# -- FlexAttention -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [None, "keys", "all"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_has_the_same_bias(form, batched, causal, masked):
    q, k, v = tensors()
    terms = make_terms(form, 2, 4, 40, 50, 3, batched, gaps=True) if form else None
    mask = {
        None: None,
        "keys": torch.rand(2, 50) > 0.5,
        "all": torch.rand(1, 4, 40, 50) > 0.5,
    }[masked]
    if masked == "keys":
        mask[0, :20] = False  # the first rows see no key
    options = {"mask": mask, "causal": causal}
    ours = biased_attention(q, k, v, terms, backend="flex", **options)
    truth = biased_attention(q, k, v, terms, backend="reference", **options)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5, 33])
def test_flex_finds_the_segment_among_any_number(segments):
    knots = torch.linspace(0.1, 0.9, segments - 1)
    pos = torch.arange(20)
    terms = Piecewise(
        torch.zeros(1, segments),
        torch.arange(float(segments))[None],
        knots,
        torch.arange(20) / 10,
        torch.full((20,), 0.7),
        pos,
        pos,
    )
    bias = flex.BIASES["Piecewise"](flex.prepared(terms, heads=1))
    distance = torch.arange(20)
    zero = torch.zeros_like(distance)
    found = bias(zero, zero, distance, zero)
    t = 0.7 * distance / 10
    assert torch.equal(found, (knots[None] <= t[:, None]).sum(-1).float())


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("documents", [False, True])
def test_flex_compiles_few_times_for_any_length(form, documents, monkeypatch):
    """As on a GPU, but for the kernels."""
    torch._dynamo.reset()
    flex.compiled.cache_clear()
    counter, compiles = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compiles(f, **o, backend=counter))
    monkeypatch.setattr(flex, "compiles", lambda q: True)
    lengths = [40, 50, 60, 33, 70, 40]
    for n in lengths:
        q, k, v = (t[:1] for t in tensors(n, n))
        terms = make_terms(form, 1, 4, n, n, free=n // 10, distances=n) if form else None
        options = {"cu_seqlens": torch.tensor([0, n // 2, n])} if documents else {}
        mask = torch.rand(1, n) > 0.2
        ours = biased_attention(q, k, v, terms, mask=mask, backend="flex", **options)
        truth = biased_attention(q, k, v, terms, mask=mask, backend="reference", **options)
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 3
    flex.compiled.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_flex_gathers_gradients_of_copies(form):
    """What kernels add to is summed by the views that they are handed."""
    terms, vectors = leaves(make_terms(form, 1, 3, 20, 20, free=2), torch.float32)
    made = flex.prepared(terms, heads=3, free=2)
    gathered = {name: t for name, t in made.items() if t.requires_grad}
    assert set(gathered) == set(vectors)
    assert all(t.shape[0] == flex.COPIES and t.shape[-2] == 3 for t in gathered.values())
    grads = torch.autograd.grad(sum(t.sum() for t in gathered.values()), list(vectors.values()))
    for grad, name in zip(grads, vectors, strict=True):
        assert (grad == made[name].numel() / vectors[name].numel()).all()


def test_flex_gathers_no_gradient_of_rows_that_softmax_does_not_see():
    terms, vectors = leaves(make_terms("separable", 1, 2, 9, 9), torch.float32)
    made = flex.prepared(terms, heads=2)
    assert not made["row"].requires_grad
    torch.testing.assert_close(made["key"][0], terms.key)
    row, key = torch.autograd.grad(made["key"].sum(), [vectors["row"], vectors["key"]])
    assert not row.any()
    assert (key == flex.COPIES).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"shape": (1, 4, 9, 80)}, None),
        ({"dtype": torch.float64}, "the inputs are torch.float64"),
        ({"shape": (1, 4, 9, 8)}, "a head has 8 dimensions, not 16 to 256"),
        ({"shape": (1, 4, 9, 257)}, "a head has 257 dimensions"),
    ],
    ids=str,
)
def test_what_flex_takes_on_a_gpu(change, reason, monkeypatch, caplog):
    fallback._warn.cache_clear()
    monkeypatch.setattr(fallback, "INSTALLED", True)
    monkeypatch.setattr(fallback, "capability", lambda on: (9, 0))
    given = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "shape": (1, 4, 9, 64)}
    t = SimpleNamespace(**given | change)
    t.numel = lambda: math.prod(t.shape)
    assert [biased._flex_takes(t, t, t) for _ in range(2)] == [reason is None] * 2
    assert [reason in record.message for record in caplog.records] == [True] * (reason is not None)
    monkeypatch.setattr(fallback, "capability", lambda on: (7, 5))
    assert not biased._flex_takes(t, t, t)
    assert "compute capability is below 8.0" in caplog.text


def test_flex_is_not_looked_for_without_a_gpu_or_keys(caplog):
    empty = SimpleNamespace(device=torch.device("cuda"), numel=lambda: 0)
    assert not biased._flex_takes(empty, empty, empty)
    assert not biased._flex_takes(*(torch.zeros(1, 1, 4, 8),) * 3)
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("gpu", [(8, 0), (8, 6), (9, 0), (12, 0)])
def test_tiles_of_flex_divide_its_blocks(dtype, heavy, gpu):
    for dim in flex.DIMS:
        found = dict(flex_tiles.options(dtype, dim, False, heavy, gpu))
        sizes = {name: size for name, size in found.items() if "BLOCK" in name}
        assert not any(flex_tiles.BLOCK % size for size in sizes.values())
        assert found["bwd_BLOCK_N1"] % found["bwd_BLOCK_M1"] == 0
        assert found["bwd_BLOCK_M2"] % found["bwd_BLOCK_N2"] == 0
    assert len(flex_tiles.options(dtype, 64, True, heavy, gpu)) == 1


def test_flex_has_no_backward_on_cpus():
    attention, given = case("by_distance", backend="flex")
    with pytest.raises(FlagError, match="backend='tiled'"):
        attention(*given)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_flex_that_are_differentiated_are_the_definitions(form, monkeypatch):
    """As on a GPU, with kernels that have no gradient."""
    reference, given = case(form, backend="reference")
    truth = reference(*given)
    monkeypatch.setattr(flex, "differentiated", lambda *_: False)
    monkeypatch.setattr(flex, "attention_of", lambda _: lambda q, *_: truth.detach() + 0 * q)
    attention, _ = case(form, backend="flex")
    weights, found = torch.randn(truth.shape), []
    for out in (attention(*given), truth):
        first = torch.autograd.grad((out * weights).sum(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), given))
    torch.testing.assert_close(*found)


# -- bad input -----------------------------------------------------------------------------------

n = torch.arange
ok = {"q": (1, 4, 5, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 8)}


@pytest.mark.parametrize(
    ("bias", "options", "said"),
    [
        (Separable(torch.ones(4, 4), torch.ones(4, 5)), {}, r"row \(4 4\) .*\(4 5\) or \(1 4 5\)"),
        (Separable(torch.ones(4, 5), torch.ones(2, 5)), {}, r"key \(2 5\) of the bias Separable"),
        (Separable(torch.ones(4, 5), torch.ones(4, 6)), {}, "for 6 keys, but k has 5"),
        (Separable(torch.ones(4, 5).long(), torch.ones(4, 5)), {}, "row .* floating point"),
        (ByDistance(torch.ones(2, 9), n(5), n(5)), {}, r"table \(2 9\) .*\(4 n\)"),
        (ByDistance(torch.ones(4, 0), n(5), n(5)), {}, r"table \(4 0\) .* is empty"),
        (ByDistance(torch.ones(4, 9), n(4), n(5)), {}, r"q_pos \(4\) .*\(5\) or \(1 5\)"),
        (ByDistance(torch.ones(4, 9), n(5), n(5.0)), {}, "k_pos .* int64.*float32"),
        (
            Piecewise(
                *(torch.ones(4, 3),) * 2, torch.ones(3), torch.ones(5), torch.ones(5), n(5), n(5)
            ),
            {},
            r"slope \(4 3\), offset \(4 3\) and knots \(3\)",
        ),
        ("alibi", {}, "bias is a str: it must be one of Separable, ByDistance, Piecewise"),
        (None, {"mask": torch.ones(1, 4, dtype=torch.bool)}, r"mask \(1 4\)"),
        (None, {"backend": "flx"}, "'flx' is not a biased attention backend.*'flex'"),
    ],
)
def test_bad_input_is_named(bias, options, said):
    with pytest.raises(FlagError, match=said):
        biased_attention(*(torch.randn(*s) for s in ok.values()), bias, **options)
