"""Packed documents: every backend gives what the documents give alone, and so do gradients."""

import dataclasses

import pytest
import torch
from biased_terms import FORMS, leaves, make_terms
from torch.nn.attention.flex_attention import create_block_mask
from torch.profiler import profile

from xcope.errors import FlagError
from xcope.ops import biased, cope
from xcope.ops.biased import biased_attention
from xcope.ops.biased.gpu import flex_tiles
from xcope.ops.cope import cope_attention
from xcope.ops.documents import document_of, lengths

CPU = torch.device("cpu")
COUNTS = {
    "some": [5, 1, 30, 14],
    "one": [50],
    "empty ones": [0, 20, 0, 0, 1, 29, 0],
    "one token each": [1] * 50,
}
N = 50
packed = pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)


def edges(counts, dtype=torch.int32):
    return torch.tensor([0, *counts]).cumsum(0).to(dtype)


def spans(counts):
    ends = edges(counts).tolist()
    return [slice(*ends[t : t + 2]) for t in range(len(counts)) if counts[t]]


def tensors(hk=4, n=N, dv=12, **others):
    shapes = {"q": (4, n, 16), "k": (hk, n, 16), "v": (hk, n, dv)} | others
    return {name: torch.randn(1, *shape, dtype=torch.float64) for name, shape in shapes.items()}


def mask_of(kind, h=4, n=N):
    return {None: None, "keys": torch.rand(1, n) > 0.4, "all": torch.rand(1, h, n, n) > 0.4}[kind]


def part_of_mask(mask, span):
    return mask if mask is None else mask[:, span] if mask.ndim == 2 else mask[:, :, span, span]


def part_of_terms(terms, span, free):
    """Of the bias of one document: keys lie ``free`` further left than queries."""
    of_keys = slice(max(0, span.start - free), max(0, span.stop - free))
    cuts = {"row": span, "shrink": span, "q_pos": span, "key": of_keys, "k_pos": of_keys}
    given = {f.name: getattr(terms, f.name) for f in dataclasses.fields(terms)}
    cut = {name: t[..., cuts[name]] for name, t in given.items() if name in cuts}
    return dataclasses.replace(terms, **cut)


def results(out, wanted):
    """Output and gradients, in float64."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    grads = torch.autograd.grad((out.double() * weights).sum(), list(wanted.values()))
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


def assert_same(ours, truth, tolerance):
    for name, true in truth.items():
        torch.testing.assert_close(
            ours[name].double(),
            true.double(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


# -- attention with an index bias ----------------------------------------------------------------


def alone(q, k, v, terms, counts, free=0, mask=None, **options):
    """The definition of each document on its own, side by side."""
    outs = [
        biased_attention(
            q[:, :, span],
            k[:, :, span],
            v[:, :, span],
            None if terms is None else part_of_terms(terms, span, free),
            mask=part_of_mask(mask, span),
            backend="reference",
            **options,
        )
        for span in spans(counts)
    ]
    return torch.cat(outs, dim=2)


def compare(backend, form, counts, *, dtype=torch.float64, hk=4, free=0, **options):
    given = {n: t.to(dtype).requires_grad_() for n, t in tensors(hk).items()}
    terms = make_terms(form, 1, 4, N, N, free, distances=20) if form else None
    terms, vectors = leaves(terms, dtype)
    wanted = given | vectors
    truth = results(alone(*given.values(), terms, counts, free, **options), wanted)
    ours = biased_attention(
        *given.values(), terms, cu_seqlens=edges(counts), backend=backend, **options
    )
    assert_same(results(ours, wanted), truth, 1e-10 if dtype == torch.float64 else 1e-4)


@packed
@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_bias(backend, form, counts):
    compare(backend, form, counts)


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("hk", [4, 2])
@pytest.mark.parametrize("masked", ["keys", "all"])
@pytest.mark.parametrize("causal", [True, False])
def test_bias_with_a_mask(backend, form, hk, masked, causal):
    compare(backend, form, COUNTS["some"], hk=hk, mask=mask_of(masked), causal=causal)


@packed
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_bias_of_fewer_keys_than_there_are(backend, form, counts):
    compare(backend, form, counts, free=9)


@pytest.mark.parametrize("form", [*FORMS, None])
def test_compiled_tiles(form):
    compare("tiled", form, COUNTS["some"], dtype=torch.float32, mask=mask_of("keys"))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_without_gradients(dtype):
    """Short documents take a path of their own."""
    q, k, v = (t.float() for t in tensors().values())
    terms = make_terms("by_distance", 1, 4, N, N)
    counts = COUNTS["empty ones"]
    ours = biased_attention(q, k, v, terms, cu_seqlens=edges(counts, dtype))
    torch.testing.assert_close(ours, alone(q, k, v, terms, counts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_no_tokens(backend, counts):
    q, k, v = tensors(n=0).values()
    out = biased_attention(q, k, v, None, cu_seqlens=edges(counts), backend=backend)
    assert out.shape == (1, 4, 0, 12)


def test_without_bias_pytorchs_flash_attention_does_each():
    q, k, v = (t.double() for t in tensors(dv=16).values())
    with profile() as profiled:
        biased_attention(q, k, v, None, cu_seqlens=edges(COUNTS["some"]))
    names = [event.name for event in profiled.events()]
    assert names.count("aten::_scaled_dot_product_flash_attention_for_cpu") == len(COUNTS["some"])
    assert "xcope::biased_tiled" not in names


def test_nothing_is_computed_between_documents(monkeypatch):
    """As many logits as the documents have alone."""
    seen = []
    tiled = biased.biased_tiled

    def watched(q, k, *rest):
        seen.append((q.shape[2], k.shape[2]))
        return tiled(q, k, *rest)

    monkeypatch.setattr(biased, "biased_tiled", watched)
    compare("tiled", "separable", COUNTS["empty ones"])
    assert seen == [(20, 20), (1, 1), (29, 29)]


# -- FlexAttention -------------------------------------------------------------------------------


@packed
@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex(form, counts):
    q, k, v = (t.float() for t in tensors(hk=2).values())
    terms = make_terms(form, 1, 4, N, N, free=3) if form else None
    for causal, masked in ((True, None), (True, "keys"), (False, "all")):
        options = {"causal": causal, "mask": mask_of(masked)}
        truth = alone(q, k, v, terms, counts, free=3, **options)
        options |= {"cu_seqlens": edges(counts), "backend": "flex"}
        ours = biased_attention(q, k, v, terms, **options)
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [None, "separable"])
def test_few_tokens_go_to_flex_too(form, monkeypatch):
    """Where it runs: the loop over documents would wait for the device."""
    monkeypatch.setattr(biased, "_flex_takes", lambda *_: True)
    monkeypatch.setitem(biased.BACKENDS, "flex", lambda inputs: inputs.cu_seqlens)
    terms = make_terms(form, 1, 4, 4, 4) if form else None
    cu_seqlens = edges([1, 3])
    with torch.no_grad():
        out = biased_attention(*tensors(n=4, dv=16).values(), terms, cu_seqlens=cu_seqlens)
    assert out is cu_seqlens


def assert_same_blocks(ours, truth):
    for kind in ("kv", "full_kv", "q", "full_q"):
        numbers, which = (getattr(ours, kind + end) for end in ("_num_blocks", "_indices"))
        assert torch.equal(numbers, getattr(truth, kind + "_num_blocks"))
        true = getattr(truth, kind + "_indices")
        assert which.shape == true.shape
        assert which.dtype == true.dtype
        for row, number in enumerate(numbers[0, 0].tolist()):
            assert torch.equal(which[0, 0, row, :number], true[0, 0, row, :number])
    assert ours.seq_lengths == truth.seq_lengths


@pytest.mark.parametrize("n", [1, 100, 128, 300, 1024])
@pytest.mark.parametrize("causal", [True, False])
def test_blocks_of_documents(n, causal):
    """As PyTorch makes them from all pairs."""
    for m in range(6):
        inner = torch.randint(n + 1, (m,)).sort().values
        cu_seqlens = torch.tensor([0, *inner, n])
        of = torch.tensor([sum(end <= t for end in cu_seqlens[1:].tolist()) for t in range(n)])
        assert torch.equal(document_of(cu_seqlens, n), of)

        def sees(b, h, i, j, of=of):
            return (of[i] == of[j]) & ((j <= i) if causal else (j >= 0))

        truth = create_block_mask(sees, None, None, n, n, device="cpu")
        assert_same_blocks(flex_tiles.block_mask(n, n, causal, cu_seqlens, CPU), truth)


@pytest.mark.parametrize(("i", "j"), [(1, 1), (129, 129), (150, 500), (500, 150), (256, 512)])
def test_blocks_of_causality(i, j):
    truth = create_block_mask(lambda b, h, q, k: k <= q + (j - i), None, None, i, j, device="cpu")
    assert_same_blocks(flex_tiles.block_mask(i, j, True, None, CPU), truth)


def test_blocks_are_shared_while_the_documents_are_the_same():
    cu_seqlens = torch.tensor([0, 100, 200, 300])
    first = flex_tiles.block_mask(300, 300, True, cu_seqlens, CPU)
    assert flex_tiles.block_mask(300, 300, True, cu_seqlens, CPU) is first
    assert flex_tiles.block_mask(300, 300, False, cu_seqlens, CPU) is not first
    assert flex_tiles.block_mask(300, 300, True, cu_seqlens.clone(), CPU) is not first
    kept = len(flex_tiles.OF_DOCUMENTS)
    cu_seqlens[1] = 150
    changed = flex_tiles.block_mask(300, 300, True, cu_seqlens, CPU)
    assert changed.mask_mod(0, 0, torch.tensor(120), torch.tensor(90))
    del cu_seqlens
    assert len(flex_tiles.OF_DOCUMENTS) < kept


def test_blocks_of_inference_serve_training_too():
    with torch.inference_mode():
        made = flex_tiles.block_mask(777, 777, True, None, CPU)
    assert not made.kv_indices.is_inference()


# -- CoPE ----------------------------------------------------------------------------------------


def cope_alone(given, counts, mask=None, terms=None, **options):
    outs = []
    for span in spans(counts):
        cut = {n: t if n in ("pos_emb", "head_mix") else t[:, :, span] for n, t in given.items()}
        bias = None if terms is None else part_of_terms(terms, span, 0)
        options |= {"mask": part_of_mask(mask, span), "bias": bias}
        outs.append(cope_attention(**cut, backend="reference", **options))
    return torch.cat(outs, dim=2)


def compare_cope(
    backend, counts, *, form=None, hk=4, gates=False, mixed=False, dtype=torch.float64, **options
):
    given = tensors(hk) | {"pos_emb": torch.randn(7, 16, dtype=torch.float64)}
    if gates:
        given["gate_k"] = torch.randn_like(given["k"])
    if mixed:
        given["head_mix"] = torch.randn(4, 4, dtype=torch.float64)
    given = {n: t.to(dtype).requires_grad_() for n, t in given.items()}
    terms = make_terms(form, 1, 4, N, N, distances=20) if form else None
    terms, vectors = leaves(terms, dtype)
    wanted = given | vectors
    truth = results(cope_alone(given, counts, terms=terms, **options), wanted)
    options |= {"bias": terms, "cu_seqlens": edges(counts), "backend": backend}
    ours = results(cope_attention(**given, **options), wanted)
    assert_same(ours, truth, 1e-9 if dtype == torch.float64 else 1e-3)


@packed
@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_cope(backend, counts):
    compare_cope(backend, counts)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", ["keys", "all"])
@pytest.mark.parametrize("hk", [4, 2])
def test_cope_with_a_mask(backend, causal, masked, hk):
    compare_cope(backend, COUNTS["some"], hk=hk, mask=mask_of(masked), causal=causal)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize(
    "change",
    [
        {"gates": True},
        {"mixed": True},
        {"soft_onehot": True, "soft_onehot_temp": 0.03},
        *({"form": form} for form in FORMS),
    ],
    ids=lambda change: " ".join(map(str, change.values() if "form" in change else change)),
)
def test_cope_otherwise(backend, change):
    compare_cope(backend, COUNTS["empty ones"], **change, mask=mask_of("keys"))


def test_compiled_tiles_of_cope():
    compare_cope("tiled", COUNTS["some"], dtype=torch.float32, mask=mask_of("keys"))


def test_cope_counts_within_a_document():
    """All gates are open: the first token of a document is at position 1 again, not further."""
    given = tensors() | {"pos_emb": torch.randn(64, 16, dtype=torch.float64)}
    given |= {"q": torch.full_like(given["q"], 50.0), "gate_k": torch.full_like(given["k"], 50.0)}
    counts = [25, 25]
    out = cope_attention(**given, cu_seqlens=edges(counts))
    last = {n: t if n == "pos_emb" else t[:, :, 25:] for n, t in given.items()}
    torch.testing.assert_close(out[:, :, 25:], cope_attention(**last))


# -- bad input -----------------------------------------------------------------------------------

given = tensors(n=6)
ok = [0, 2, 6]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "int32 or int64, but is torch.float32"),
        ({"cu_seqlens": torch.tensor([0, 6], dtype=torch.int16)}, "int32 or int64"),
        ({"cu_seqlens": torch.tensor([[0, 6]])}, r"cu_seqlens \(1 2\) must be \(m \+ 1\)"),
        ({"cu_seqlens": torch.tensor(6)}, r"cu_seqlens \(\) must be \(m \+ 1\)"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int64)}, r"cu_seqlens \(0\) must be"),
        ({"cu_seqlens": torch.tensor([1, 6])}, "must begin with 0, but does with 1"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "number of tokens, 6, but does with 5"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 6])}, "must ascend, but has 3 after 4"),
        ({"cu_seqlens": torch.tensor([0, 6], device="meta")}, "on meta, but q on cpu"),
        ({n: t.expand(2, -1, -1, -1) for n, t in given.items()}, "flatten the batch into one row"),
        ({"q": given["q"][:, :, :5]}, "as many queries as keys.* has 5 and .* has 6"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
def test_bad_input_is_named(change, said, backend):
    options = given | {"cu_seqlens": torch.tensor(ok), "backend": backend} | change
    with pytest.raises(FlagError, match=said) as caught:
        biased_attention(**options, bias=None)
    assert caught.value.flag == "cu_seqlens"
    with pytest.raises(FlagError, match=said):
        cope_attention(**options, pos_emb=torch.ones(3, 16, dtype=torch.float64))


def test_helpers():
    cu_seqlens = edges([0, 2, 0, 3])
    assert document_of(cu_seqlens, 5).tolist() == [1, 1, 3, 3, 3]
    assert lengths(cu_seqlens) == [2, 3]
    assert set(cope.BACKENDS) >= {"reference", "tiled"}
