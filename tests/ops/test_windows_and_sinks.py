"""Windows and sinks of attention: by the definition, in tiles, compiled, and without work for what
no query sees."""

from dataclasses import replace

import pytest
import torch
from biased_terms import FORMS, leaves, make_terms
from by_rows import biased_by_rows, cope_by_rows
from torch.library import opcheck
from torch.nn.attention.flex_attention import create_block_mask
from ways import WAYS, take

from xcope.errors import FlagError
from xcope.ops import biased, fallback, windows
from xcope.ops.biased import biased_attention, operator
from xcope.ops.biased.gpu import flex_tiles
from xcope.ops.cope import CopeInputs, cope_attention
from xcope.ops.cope import operator as cope_operator
from xcope.ops.terms import flatten
from xcope.ops.tiling.tiles import Heads
from xcope.ops.windows import last_keys, narrowed, within

CPU = torch.device("cpu")
KINDS = ["plain", *FORMS, "cope", "gates", "mixed"]


def bounds(b, i, j, size=7, ragged=False):
    """Sliding windows with two first keys; ragged ones differ from row to row of the batch."""
    window = last_keys(size, i, j, CPU).clone()
    window[:, 0] = 2
    if ragged:
        window = window.expand(b, -1, -1).clone()
        window[:, 1] -= torch.randint(0, 9, (b, i), dtype=torch.int32)
        window[:, 0] += torch.randint(0, 5, (b, i), dtype=torch.int32)
        window.clamp_(min=0)
    return window


def tensors(i=40, j=40, hk=2, d=8):
    torch.manual_seed(0)
    shapes = {"q": (4, i), "k": (hk, j), "v": (hk, j)}
    return {name: torch.randn(2, h, n, d) for name, (h, n) in shapes.items()}


def results(kind, backend, dtype, given, window, sink, **options):
    """Output and gradients by name, in float64."""
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in given.values())
    wanted = {"q": q, "k": k, "v": v}
    torch.manual_seed(1)
    if sink is not None:
        wanted["sink"] = sink = sink.detach().to(dtype).requires_grad_()
    if kind in ("cope", "gates", "mixed"):
        wanted["pos_emb"] = torch.randn(5, q.shape[-1]).to(dtype).requires_grad_()
        if kind == "gates":
            wanted["gate_k"] = torch.randn(k.shape).to(dtype).requires_grad_()
        if kind == "mixed":
            wanted["head_mix"] = torch.randn(4, 4).to(dtype).requires_grad_()
        out = cope_attention(**wanted, window=window, backend=backend, **options)
    else:
        i, j = q.shape[2], k.shape[2]
        terms = None if kind == "plain" else make_terms(kind, 2, 4, i, j, free=1)
        bias, vectors = leaves(terms, dtype)
        wanted |= vectors
        options |= {"window": window, "sink": sink, "backend": backend}
        out = biased_attention(q, k, v, bias, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    grads = torch.autograd.grad((out.double() * weights).sum(), list(wanted.values()))
    return dict(zip(["out", *wanted], [t.detach().double() for t in (out, *grads)], strict=True))


def assert_same(ours, truth, tolerance):
    for name, true in truth.items():
        allowed = {"atol": tolerance * max(1.0, float(true.abs().max())), "rtol": tolerance}
        torch.testing.assert_close(ours[name], true, **allowed, msg=lambda m, n=name: f"{n}: {m}")


SINK = torch.tensor([-2.0, 0.0, 1.0, 3.0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("i", "j"), [(40, 40), (70, 150), (33, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_equal_the_definition(kind, i, j, way, monkeypatch):
    take(way, monkeypatch)
    given = tensors(i, j)
    mask = torch.rand(2, 4, i, j) > 0.2
    for ragged, options in ((False, {}), (True, {"mask": mask}), (True, {"causal": False})):
        window = bounds(2, i, j, ragged=ragged)
        truth = results(kind, "reference", torch.float64, given, window, SINK, **options)
        assert_same(
            results(kind, "tiled", torch.float32, given, window, SINK, **options), truth, 2e-4
        )
    if way == "eager":
        assert_same(
            results(kind, "tiled", torch.float64, given, window, SINK, **options), truth, 1e-9
        )


@pytest.mark.parametrize("kind", ["plain", "cope"])
def test_the_definition_is_the_formula_row_by_row(kind):
    given = {name: t.double() for name, t in tensors(9, 12).items()}
    window = bounds(2, 9, 12, size=3, ragged=True)
    seen = torch.ones(9, 12, dtype=torch.bool).tril(3) & within(window, slice(0, 12))
    # a key with a value of 0 and this logit, which all rows see after all others
    q = torch.cat((given["q"], torch.ones(2, 4, 9, 1).double()), -1)
    k, v = (torch.cat((t, torch.zeros(2, 2, 12, 1).double()), -1) for t in (given["k"], given["v"]))
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    if kind == "plain":
        sink = torch.zeros(2, 4, 1, 9).double()
        sink[..., -1] = SINK[:, None]
        whole = torch.cat((sink, k), 2), torch.cat((torch.zeros(2, 4, 1, 9).double(), v), 2)
        with_sink = torch.cat((torch.ones(2, 1, 9, 1, dtype=torch.bool), seen), -1)
        truth = biased_by_rows(q, *whole, None, with_sink, 1.0)[..., :8]
        out = biased_attention(*given.values(), None, scale=1.0, window=window, sink=SINK.double())
        torch.testing.assert_close(out, truth)
        return
    e = torch.randn(4, 8, dtype=torch.float64)
    truth = cope_by_rows(*given.values(), e, seen, 0.7)
    for backend in ("reference", "tiled"):
        out = cope_attention(*given.values(), e, scale=0.7, window=window, backend=backend)
        torch.testing.assert_close(out, truth)


def test_a_whole_number_is_so_many_last_keys():
    q, k, v = tensors(20, 30).values()
    keys, queries = torch.arange(30), torch.arange(10, 30)[:, None]
    mask = (queries - keys < 4).expand(1, 1, 20, 30)
    for attention in (
        lambda **o: biased_attention(q, k, v, None, **o),
        lambda **o: cope_attention(q, k, v, torch.ones(3, 8), **o),
    ):
        torch.testing.assert_close(attention(window=4), attention(mask=mask))


# -- the operators -------------------------------------------------------------------------------


def test_opcheck():
    q, k, v = (t.requires_grad_() for t in tensors(30, 40, d=16).values())
    window, sink = bounds(2, 30, 40, ragged=True), SINK.clone().requires_grad_()
    terms, _ = leaves(make_terms("separable", 2, 4, 30, 40), torch.float32)
    name, vectors = flatten(terms)
    opcheck(operator.biased_tiled, (q, k, v, None, window, sink, vectors, name, 0.25, True))
    e = torch.randn(5, 16).requires_grad_()
    inputs = CopeInputs(q=q, k=k, v=v, pos_emb=e, window=window, sink=sink, scale=0.25)
    opcheck(cope_operator.cope, (*inputs.flat(), "tiled"))


@pytest.mark.parametrize("kind", ["plain", "cope"])
def test_gradients_and_second_derivatives(kind):
    given = [t.double()[:1, :, :9] for t in tensors(9, 9).values()]
    given = [t.requires_grad_() for t in (*given, SINK.double())]
    window = bounds(1, 9, 9, size=3)
    e = torch.randn(4, 8, dtype=torch.float64)

    def attention(q, k, v, sink, backend="tiled"):
        options = {"window": window, "sink": sink, "backend": backend}
        if kind == "plain":
            return biased_attention(q, k, v, None, **options)
        return cope_attention(q, k, v, e, **options)

    assert torch.autograd.gradcheck(attention, given, fast_mode=True)
    seconds = []
    for backend in ("tiled", "reference"):
        out = attention(*given, backend).square().sum()
        first = torch.autograd.grad(out, given, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    for ours, truth in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, truth)


def test_traced_operators_give_what_they_give():
    torch._dynamo.reset()
    given = tensors(30, 30)
    e = torch.randn(5, 8)

    def both(q, k, v, sink):
        return (
            biased_attention(q, k, v, None, window=7, sink=sink),
            cope_attention(q, k, v, e, window=7, sink=sink),
        )

    traced = torch.compile(both, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(traced(*given.values(), SINK), both(*given.values(), SINK), strict=True):
        torch.testing.assert_close(ours, plain)


# -- what is not seen is not computed ------------------------------------------------------------


def never(*_):
    raise AssertionError("numbers that are not finite were met")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "cope"])
def test_keys_that_no_query_of_a_tile_sees_are_never_read(kind, way, monkeypatch):
    """They are NaN, which products with a weight of 0 would show."""
    take(way, monkeypatch)
    for its in (operator, cope_operator):
        monkeypatch.setattr(its, "repair", never)
    given = tensors(16, 600)
    window = bounds(2, 16, 600, size=20)
    for t in (given["k"], given["v"]):
        t[:, :, 130:500] = torch.nan  # between the first keys' block and the last ones'
    ours = results(kind, "tiled", torch.float32, given, window, SINK)
    given = {name: t.nan_to_num() for name, t in given.items()}
    truth = results(kind, "reference", torch.float64, given, window, SINK)
    assert_same(ours, truth, 2e-4)


def test_tiles_of_a_window_are_those_on_its_band():
    """Of 2048 queries and keys in windows of 100: fewer than a third of the causal ones."""
    q, k = torch.empty(1, 1, 2048, 8), torch.empty(1, 2048, 8)
    heads = {"q": q, "k": k, "v": k, "hidden": None, "scale": 1.0, "causal": True, "heads": 1}
    counted = [
        sum(
            (t.i1 - t.i0) * (t.j1 - t.j0)
            for *_, tiles in Heads(**given).query_tiles()
            for t in tiles
        )
        for given in (heads, heads | {"window": last_keys(100, 2048, 2048, CPU)})
    ]
    assert counted[1] < counted[0] / 3


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("kind", ["plain", "separable", "by_distance", "cope", "gates"])
def test_few_queries_read_the_keys_of_their_windows_only(kind, first):
    given = tensors(3, 50)
    window = bounds(2, 3, 50, size=6)
    window[:, 0] = first
    q, k, v = given.values()
    torch.manual_seed(1)
    if kind in ("cope", "gates"):
        others = {"gate_k": torch.randn(k.shape)} if kind == "gates" else {}
        e = torch.randn(5, 8)

        def attention(**options):
            return cope_attention(q, k, v, e, sink=SINK, **others, **options)

        inputs = CopeInputs(q=q, k=k, v=v, pos_emb=e, window=window, scale=1.0, **others)
    else:
        terms = None if kind == "plain" else make_terms(kind, 2, 4, 3, 50, free=1)
        bias, _ = leaves(terms, torch.float32)

        def attention(**options):
            return biased_attention(q, k, v, bias, sink=SINK, **options)

        inputs = biased.BiasedInputs(q=q, k=k, v=v, bias=bias, window=window, scale=1.0)
    with torch.no_grad():
        truth = attention(window=window, backend="reference")
        k[:, :, first:42], v[:, :, first:42] = torch.nan, torch.nan
        torch.testing.assert_close(attention(window=window), truth)
    assert narrowed(inputs).k.shape[2] == first + 8


# -- numbers that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "cope"])
@pytest.mark.parametrize("n", [5, 40])
def test_what_is_outside_of_the_window_need_not_be_finite(kind, n):
    given = tensors(n, n)
    window = last_keys(3, n, n, CPU)
    truth = results(kind, "reference", torch.float64, given, window, SINK)["out"]
    given["k"][:, :, 1], given["v"][:, :, 1] = torch.inf, torch.nan
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            q, k, v = (t.clone().requires_grad_(grads) for t in given.values())
            torch.manual_seed(1)
            options = {"window": window, "sink": SINK}
            if kind == "plain":
                out = biased_attention(q, k, v, None, **options)
            else:
                out = cope_attention(q, k, v, torch.randn(5, 8), **options)
        rows = (out.isfinite()).all(-1)
        assert rows[:, :, [0, *range(4, n)]].all()
        assert not rows[:, :, 1:4].any()
        kept = out[:, :, 4:].double()
        torch.testing.assert_close(kept, truth[:, :, 4:], atol=1e-4, rtol=1e-4)


def test_a_sink_that_is_no_number_shows_in_its_head_alone():
    q, k, v = tensors().values()
    sink = SINK.clone()
    sink[2] = torch.nan
    for attention in (
        lambda **o: biased_attention(q, k, v, None, **o),
        lambda **o: cope_attention(q, k, v, torch.ones(3, 8), **o),
    ):
        out, truth = attention(sink=sink), attention(sink=SINK)
        assert out[:, 2].isnan().all()
        torch.testing.assert_close(out[:, [0, 1, 3]], truth[:, [0, 1, 3]])


def test_rows_that_see_no_key_give_zeros_and_leave_the_sink_alone():
    given = tensors(6, 6)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, :2] = False
    found = results("plain", "tiled", torch.float32, given, None, SINK, mask=mask)
    assert (found["out"][:, :, :2] == 0).all()
    truth = results("plain", "reference", torch.float64, given, None, SINK, mask=mask)
    assert_same(found, truth, 1e-4)


# -- documents, FlexAttention, Triton ------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "tiled", "flex"])
@pytest.mark.parametrize("kind", ["plain", "cope"])
def test_a_document_has_the_window_that_it_has_alone(kind, backend):
    if (kind, backend) == ("cope", "flex"):
        backend = "auto"
    q, k, v = (t[:1] for t in tensors(40, 40).values())
    edges = torch.tensor([0, 11, 12, 12, 40])
    e = torch.randn(4, 8)

    def attention(q, k, v, window, **options):
        options |= {"window": window, "sink": SINK, "backend": backend}
        if kind == "plain":
            return biased_attention(q, k, v, None, **options)
        return cope_attention(q, k, v, e, **options)

    starts = torch.tensor([0] * 11 + [11] + [12] * 28, dtype=torch.int32)
    window = last_keys(5, 40, 40, CPU).clone()
    window[:, 0] = starts + 2
    window[:, 1] = torch.maximum(window[:, 1], starts)
    packed = attention(q, k, v, window, cu_seqlens=edges)
    for start, stop in ((0, 11), (11, 12), (12, 40)):
        its = last_keys(5, stop - start, stop - start, CPU).clone()
        its[:, 0] = 2
        alone = attention(*(t[:, :, start:stop] for t in (q, k, v)), its)
        torch.testing.assert_close(packed[:, :, start:stop], alone)


@pytest.mark.parametrize(("i", "j"), [(1, 1), (300, 300), (150, 500), (256, 512)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("b", [1, 2])
def test_blocks_of_windows_are_those_that_pytorch_makes_from_all_pairs(i, j, causal, b):
    torch.manual_seed(0)
    window = bounds(b, i, j, size=140, ragged=b > 1)

    def sees(row, h, query, key):
        row = row * 0 if b == 1 else row
        near = (key < window[row, 0, query]) | (key >= window[row, 1, query])
        return near & (key <= query + (j - i)) if causal else near

    truth = create_block_mask(sees, None if b == 1 else b, None, i, j, device="cpu")
    ours = flex_tiles.block_mask(i, j, causal, None, CPU, window)
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(truth, name)), name
    numbers = truth.kv_num_blocks
    for at in torch.cartesian_prod(*map(torch.arange, numbers.shape)).tolist():
        row = tuple(at)
        mine, its = (m.kv_indices[row][: numbers[row]] for m in (ours, truth))
        assert torch.equal(mine, its)
    assert flex_tiles.block_mask(i, j, causal, None, CPU, window) is ours


@pytest.mark.parametrize("ragged", [False, True])
def test_flex_attention_in_windows(ragged):
    q, k, v = tensors(40, 60, d=16).values()
    window = bounds(2, 40, 60, ragged=ragged)
    terms, _ = leaves(make_terms("separable", 2, 4, 40, 60, free=1), torch.float32)
    for bias in (None, replace(terms, row=terms.row.detach(), key=terms.key.detach())):
        ours, truth = (
            biased_attention(q, k, v, bias, window=window, sink=SINK, backend=backend)
            for backend in ("flex", "reference")
        )
        torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-4)


def test_tritons_kernels_hand_windows_and_sinks_to_tiles_and_say_so_once(caplog):
    fallback._warn.cache_clear()
    q, k, v = tensors(9, 9).values()
    e = torch.randn(4, 8)
    for options in ({"window": 4}, {"window": 5}, {"sink": SINK}):
        ours, truth = (
            cope_attention(q, k, v, e, backend=backend, **options)
            for backend in ("triton", "reference")
        )
        torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-4)
    assert sum("window" in record.message for record in caplog.records) == 1
    assert sum("sink" in record.message for record in caplog.records) == 1


# -- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "flag", "says"),
    [
        ({"window": 0}, "window", "1 or more"),
        ({"window": True}, "window", "1 or more"),
        ({"window": torch.zeros(1, 2, 9)}, "window", "int32"),
        ({"window": torch.zeros(1, 2, 8, dtype=torch.int32)}, "window", "1 2 9"),
        ({"window": torch.zeros(3, 2, 9, dtype=torch.int32)}, "window", "2 2 9"),
        ({"sink": torch.zeros(2)}, "sink", r"must be \(4\)"),
        ({"sink": torch.zeros(4, dtype=torch.int64)}, "sink", "floating point"),
    ],
)
def test_bad_input_is_named(options, flag, says):
    q, k, v = tensors(9, 9).values()
    for attention in (
        lambda: biased_attention(q, k, v, None, **options),
        lambda: cope_attention(q, k, v, torch.ones(3, 8), **options),
    ):
        with pytest.raises(FlagError, match=says) as caught:
            attention()
        assert caught.value.flag == flag


def test_the_gap_is_what_no_query_sees():
    window = bounds(2, 5, 40, size=6, ragged=True)
    seen = within(window, slice(0, 40)).any(0)[0].any(0)
    first, past = windows.gap(window, 40)
    assert past > first
    assert not seen[first:past].any()
    assert seen[first - 1]
    assert seen[past]
