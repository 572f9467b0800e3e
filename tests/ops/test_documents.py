"""Packed documents: each row of attention is what the document alone would give."""

import dataclasses

import pytest
import torch
from biased_terms import FORMS, leaves, make_terms

from xcope.errors import FlagError
from xcope.ops.biased import biased_attention
from xcope.ops.cope import cope_attention
from xcope.ops.documents import document_of, lengths, within_documents

LENGTHS = (17, 0, 1, 40)
EDGES = torch.tensor([0, 17, 17, 18, 58], dtype=torch.int32)
N = 58


def spans():
    first = 0
    for n in LENGTHS:
        if n:
            yield slice(first, first + n)
        first += n


def of_span(terms, span):
    """The bias of these tokens alone, told without `of_tokens`."""
    if terms is None:
        return None
    of_tokens = ("row", "key", "q_pos", "k_pos", "shrink")
    parts = {n: getattr(terms, n, None) for n in of_tokens}
    return dataclasses.replace(
        terms, **{n: t[..., span] for n, t in parts.items() if t is not None}
    )


def inputs(h=4, hk=2, d=16):
    return [
        torch.randn(1, heads, N, d, dtype=torch.float64).requires_grad_() for heads in (h, hk, hk)
    ]


def alone(attention, tensors, mask, terms=None, **extra):
    """Document by document."""
    outs = []
    for span in spans():
        its = [t[:, :, span] for t in tensors]
        its_mask = None if mask is None else mask[:, span]
        more = {n: t[:, :, span] for n, t in extra.items()}
        outs.append(attention(*its, bias=of_span(terms, span), mask=its_mask, **more))
    return torch.cat(outs, dim=2)


def assert_same(packed, single, wanted):
    weights = torch.linspace(-1, 2, packed.numel(), dtype=torch.float64).view(packed.shape)
    torch.testing.assert_close(packed, single, rtol=1e-9, atol=1e-9)
    grads = [torch.autograd.grad((out * weights).sum(), wanted) for out in (packed, single)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not causal"])
@pytest.mark.parametrize("form", [None, *FORMS])
@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_with_each_form_of_bias(backend, form, causal, masked):
    tensors, mask = inputs(), torch.rand(1, N) > 0.3 if masked else None
    terms, vectors = leaves(make_terms(form, 1, 4, N, N) if form else None, torch.float64)
    given = {"causal": causal, "backend": backend}
    packed = biased_attention(*tensors, terms, mask=mask, cu_seqlens=EDGES, **given)

    def attention(q, k, v, bias, mask):
        return biased_attention(q, k, v, bias, mask=mask, causal=causal, backend="reference")

    assert_same(packed, alone(attention, tensors, mask, terms), [*tensors, *vectors.values()])


@pytest.mark.parametrize("form", [None, *FORMS])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not causal"])
def test_flex_forward(form, causal):
    tensors = [t.detach().float() for t in inputs()]
    terms, _ = leaves(make_terms(form, 1, 4, N, N) if form else None, torch.float32)
    with torch.no_grad():
        ours, truth = (
            biased_attention(*tensors, terms, causal=causal, cu_seqlens=EDGES, backend=backend)
            for backend in ("flex", "reference")
        )
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gates", [False, True], ids=["", "gate keys"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not causal"])
@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_counts_do_not_cross(backend, causal, masked, gates):
    tensors, mask = inputs(), torch.rand(1, N) > 0.3 if masked else None
    table = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    extra = {"gate_k": torch.randn_like(tensors[1]).requires_grad_()} if gates else {}
    given = {"causal": causal, "backend": backend}
    packed = cope_attention(*tensors, table, mask=mask, cu_seqlens=EDGES, **extra, **given)

    def attention(q, k, v, bias, mask, **more):
        return cope_attention(q, k, v, table, mask=mask, causal=causal, **more)

    wanted = [*tensors, table, *extra.values()]
    assert_same(packed, alone(attention, tensors, mask, **extra), wanted)


def test_which_token_is_whose():
    assert document_of(EDGES, N).tolist() == [0] * 17 + [2] + [3] * 40
    assert lengths(EDGES) == [17, 1, 40]
    seen = within_documents(None, EDGES, N)
    assert seen.shape == (1, 1, N, N)
    assert int(seen.sum()) == 17**2 + 1 + 40**2


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.tensor([0.0, N]), "int32 or int64"),
        (torch.tensor([[0, N]]), r"must be \(m \+ 1\)"),
        (torch.tensor([1, N]), "must begin with 0, but does with 1"),
        (torch.tensor([0, 30, 20, N]), "must ascend, but has 20 after 30"),
        (torch.tensor([0, 30]), "must end with the number of tokens, 58, but does with 30"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_explained(edges, message):
    q, k, v = inputs()
    with pytest.raises(FlagError, match=message):
        biased_attention(q, k, v, None, cu_seqlens=edges)
    with pytest.raises(FlagError, match=message):
        cope_attention(q, k, v, torch.zeros(4, 16), cu_seqlens=edges)


def test_one_row_of_as_many_queries_as_keys():
    q, k, v = inputs()
    with pytest.raises(FlagError, match="flatten the batch into one row"):
        biased_attention(*(t.expand(2, -1, -1, -1) for t in (q, k, v)), None, cu_seqlens=EDGES)
    with pytest.raises(FlagError, match="as many queries as keys"):
        biased_attention(q[:, :, :10], k, v, None, cu_seqlens=EDGES)


@pytest.mark.parametrize("form", FORMS)
def test_keys_without_a_place_have_no_bias(form):
    """The first three of the row: of the first document alone."""
    tensors, terms = inputs(), make_terms(form, 1, 4, N, N, free=3)
    ours, truth = (
        biased_attention(*tensors, terms, cu_seqlens=EDGES, backend=backend)
        for backend in ("tiled", "reference")
    )
    torch.testing.assert_close(ours, truth)
