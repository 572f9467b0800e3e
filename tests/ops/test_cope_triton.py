"""The Triton kernels of CoPE equal the definition; interpreted where there is no GPU."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from xcope.errors import FlagError
from xcope.ops import fallback
from xcope.ops.cope import CopeInputs, cope_attention, gpu
from xcope.ops.cope.operator import cope

pytestmark = pytest.mark.long

triton = pytest.importorskip("xcope.ops.cope.gpu.launch", reason="Triton is not installed")
tuning = pytest.importorskip("xcope.ops.cope.gpu.tuning")
Tiles, Choice = tuning.Tiles, tuning.Choice

SMALL = Choice(
    forward=(Tiles(16, 32, 4, 1, 16),),
    backward_q=(Tiles(32, 32, 4, 1, 16),),
    backward_k=(Tiles(16, 32, 4, 1),),
    backward_k_plain=(Tiles(16, 64, 4, 1),),
    piece=16,
)
BITS = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So small that little input needs many."""
    if not tuning.INTERPRETED:
        pytest.skip("the kernels are compiled here: scripts/gpu_check.py tests them")
    monkeypatch.setattr(triton, "choice", lambda *_: SMALL)


def inputs(b=1, h=2, hk=None, i=40, j=None, d=16, dv=None, p=8, tables=False, scale=1.0):
    hk, j, dv = hk or h, j or i, dv or d
    q, k = scale * torch.randn(b, h, i, d), torch.randn(b, hk, j, d)
    v, e = torch.randn(b, hk, j, dv), torch.randn(*((h,) if tables else ()), p, d)
    return {"q": q, "k": k, "v": v, "pos_emb": e}


def run(backend, dtype, tensors, **options):
    """Output and all gradients, in float64."""
    leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items()}
    out = cope_attention(**leaves, backend=backend, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    weights = weights.to(torch.bfloat16).double()  # what every dtype can hold
    grads = torch.autograd.grad((out.double() * weights).sum(), list(leaves.values()))
    return [out.detach().double(), *(g.double() for g in grads)]


def assert_exact(tensors, dtype=torch.float32, slack=1.0, **options):
    """To the dtype's precision, or twice what the definition itself rounds away in it."""
    tensors = {n: t.to(dtype) for n, t in tensors.items()}
    truth = run("reference", torch.float64, tensors, **options)
    rounded = run("reference", dtype, tensors, **options)
    ours = run("triton", dtype, tensors, **options)
    for name, mine, theirs, true in zip(["out", *tensors], ours, rounded, truth, strict=True):
        error, own = (mine - true).norm(), (theirs - true).norm()
        # where the true gradient is zero, as of a table of one position, rounding is all there is
        allowed = slack * BITS[dtype] * (true.norm() + 0.05 * true.numel() ** 0.5) + 2 * own
        assert error <= allowed, f"{name}: {error:.1e}, {allowed:.1e} allowed"


shapes = st.fixed_dictionaries(
    {
        "b": st.integers(1, 2),
        "h": st.sampled_from([1, 2]),
        "i": st.sampled_from([1, 2, 15, 16, 17, 50]),
        "d": st.sampled_from([8, 16, 24]),
        "p": st.sampled_from([1, 2, 5, 16, 64, 300]),
        "tables": st.booleans(),
    }
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=shapes,
    single=st.booleans(),
    extra=st.sampled_from([0, 1, 40]),
    masked=st.sampled_from([None, "keys", "all"]),
    causal=st.booleans(),
    gates=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition(shape, single, extra, masked, causal, gates, dtype, seed):
    torch.manual_seed(seed)
    hk = 1 if single else shape["h"]
    i, j = shape["i"], shape["i"] + extra
    tensors = inputs(**shape, hk=hk, j=j, dv=12)
    if gates:
        tensors["gate_k"] = torch.randn_like(tensors["k"])
    mask = {
        None: None,
        "keys": torch.rand(shape["b"], j) > 0.5,
        "all": torch.rand(1, shape["h"], i, j) > 0.5,
    }[masked]
    assert_exact(tensors, dtype, mask=mask, causal=causal)


@pytest.mark.parametrize("dtype", list(BITS))
@pytest.mark.parametrize("p", [8, 100], ids=["saturating", "counting on"])
def test_every_dtype(dtype, p):
    assert_exact(inputs(h=2, hk=1, i=50, p=p), dtype)


@pytest.mark.parametrize("d", [16, 40, 64, 256])
def test_widths(d):
    assert_exact(inputs(i=40, d=d, dv=max(16, d // 2)), torch.bfloat16)


def test_a_long_table():
    assert_exact(inputs(h=1, i=40, p=4096))


def test_fewer_keys_than_queries():
    assert_exact(inputs(i=70, j=20))


def test_rows_that_see_no_key_give_zeros():
    tensors = inputs(b=2, i=40)
    mask = torch.rand(2, 40) > 0.3
    mask[0, :20] = False
    out, *grads = run("triton", torch.float32, tensors, mask=mask)
    assert not out[0, :, :20].any()
    assert all(g.isfinite().all() for g in grads)
    assert not grads[0][0, :, :20].any()


@pytest.mark.parametrize("name", ["q", "k"])
def test_empty_inputs(name):
    tensors = inputs(i=20)
    for n in {"q": ["q"], "k": ["k", "v"]}[name]:
        tensors[n] = tensors[n][:, :, :0]
    out, *grads = run("triton", torch.float32, tensors)
    assert not out.any()
    assert not any(g.any() for g in grads)


def test_inputs_that_are_not_contiguous():
    tensors = inputs(i=50)
    strided = {n: t.mT.contiguous().mT for n, t in tensors.items()}
    strided["q"] = tensors["q"].repeat_interleave(2, dim=2)[:, :, ::2]
    assert not any(t.is_contiguous() for t in strided.values())
    for ours, same in zip(
        run("triton", torch.float32, strided), run("triton", torch.float32, tensors), strict=True
    ):
        torch.testing.assert_close(ours, same, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e2])
def test_extreme_gates(size):
    """As for the tiles: a gate's logit near 0 is rounded to 2^−24 of ``size``."""
    tensors = inputs(i=40, p=16)
    tensors["gate_k"] = size * torch.randn_like(tensors["k"])
    assert_exact(tensors, slack=max(1.0, size * 2**-24 / BITS[torch.float32]))


@pytest.mark.parametrize("p", [4, 16, 100])
def test_counts_that_are_integers(p):
    """Half a gate each: positions land on the table's integers."""
    tensors = inputs(h=1, i=60, p=p)
    tensors["gate_k"] = torch.zeros_like(tensors["k"])
    assert_exact(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_near_zero(dtype):
    tensors = inputs(h=1, i=150, p=16)
    tensors["q"], tensors["k"] = 1 + 0.2 * tensors["q"], -1 + 0.2 * tensors["k"]
    assert_exact(tensors, dtype, slack=2.0)


@pytest.mark.parametrize("temp", [0.03, 0.05])
def test_soft_one_hot_equals_the_full_sum(temp):
    assert_exact(inputs(i=50, p=12), soft_onehot=True, soft_onehot_temp=temp)


def test_soft_one_hot_of_a_high_temperature_needs_the_reference():
    with pytest.raises(FlagError, match=r"0\.2 is above"):
        cope_attention(**inputs(), soft_onehot=True, soft_onehot_temp=0.2, backend="triton")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("p", [5, 64], ids=["saturating", "counting on"])
@pytest.mark.parametrize("masked", [False, True])
def test_documents(causal, p, masked):
    """An empty one and one of a single token among them; borders in the middle of tiles."""
    cu_seqlens = torch.tensor([0, 1, 1, 20, 39, 45], dtype=torch.int32)
    mask = torch.rand(1, 45) > 0.3 if masked else None
    tensors = inputs(h=2, hk=1, i=45, p=p)
    assert_exact(tensors, cu_seqlens=cu_seqlens, causal=causal, mask=mask)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "masked, with gate keys"])
def test_queries_in_chunks(monkeypatch, plain):
    """Where the table logits of all rows would take too much room."""
    monkeypatch.setattr(triton, "WORKSPACE", 2**14)
    tensors = inputs(h=1, i=140, p=40)
    if not plain:
        tensors["gate_k"] = torch.randn_like(tensors["k"])
    mask = None if plain else torch.rand(1, 1, 140, 140) > 0.4
    assert len(list(triton.chunks(triton.Prepared(given_of(tensors)), 400))) == 2
    assert_exact(tensors, mask=mask)


def given_of(tensors):
    names = ("q", "k", "v", "pos_emb")
    return CopeInputs(**{name: tensors[name] for name in names}, scale=0.25)


def test_a_saturated_row_stops_counting():
    """Gates of one half fill eight positions with fourteen keys, of however many."""
    tensors = inputs(h=1, i=300)
    tensors["q"].zero_()
    start = triton.forward(given_of(tensors)).start[0, 0]
    counted = torch.arange(1, 301) - start
    slack = 16 + 16 + 32  # other rows of the tile, the keys counted at once, the tile of plain ones
    assert (counted <= 14 + slack).all()
    assert (counted[100:] >= 14).all()


def test_decoding_one_query_at_a_time():
    tensors = inputs(b=2, h=4, hk=2, i=1, j=90)
    with torch.no_grad():
        ours, truth = (cope_attention(**tensors, backend=b) for b in ("triton", "reference"))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_opcheck():
    q, k, v, e = (t.requires_grad_() for t in inputs(i=10, j=20, p=4).values())
    given = CopeInputs(q=q, k=k, v=v, pos_emb=e, scale=0.25)
    opcheck(cope, (*given.flat(), "triton"))
    gate_k, mask = torch.randn_like(k).requires_grad_(), torch.rand(1, 1, 1, 20) > 0.3
    given = replace(given, gate_k=gate_k, mask=mask, causal=False, soft_onehot=True)
    opcheck(cope, (*given.flat(), "triton"))


def test_a_table_of_a_wider_dtype():
    """As under autocast: float32 parameters, bfloat16 activations."""
    tensors = {n: t.bfloat16().requires_grad_() for n, t in inputs().items()}
    tensors["pos_emb"] = tensors["pos_emb"].detach().float().requires_grad_()
    out = cope_attention(**tensors, backend="triton")
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert tensors["pos_emb"].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"head_mix": torch.eye(2)}, "heads are mixed"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"d": 300}, "300 dimensions, above 256"),
        ({"p": 2**14 + 1}, "max_pos is 16385"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_what_kernels_cannot_take_is_tiled_and_said_once(caplog, change, reason):
    fallback._warn.cache_clear()
    sizes = {name: change.pop(name) for name in ("d", "p") if name in change}
    dtype = change.pop("dtype", torch.float32)
    tensors = {n: t.to(dtype) for n, t in inputs(i=12, **sizes).items()}
    with caplog.at_level(logging.WARNING):
        ours = [cope_attention(**tensors, **change, backend="triton") for _ in range(2)]
    truth = cope_attention(**tensors, **change, backend="reference")
    torch.testing.assert_close(ours[1], truth, rtol=1e-4, atol=1e-4)
    assert [reason in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("version", "too_old"),
    [("3.2.0", True), ("3.5.1", True), ("3.6.0", False), ("3.10.0+git1", False), ("", False)],
)
def test_kernels_need_a_triton_that_they_are_written_for(version, too_old):
    assert gpu._too_old(version) is too_old


def test_with_an_older_triton_it_is_tiled_and_said(caplog, monkeypatch):
    fallback._warn.cache_clear()
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    monkeypatch.setattr(gpu, "TOO_OLD", True)
    tensors = inputs(i=12)
    with caplog.at_level(logging.WARNING):
        ours = cope_attention(**tensors, backend="triton")
    truth = cope_attention(**tensors, backend="reference")
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
    assert ["is older than 3.6" in record.message for record in caplog.records] == [True]


def test_a_compiled_call_says_it_too(caplog):
    fallback._warn.cache_clear()
    torch._dynamo.reset()
    tensors = inputs(i=12)

    def mixed():
        return cope_attention(**tensors, head_mix=torch.eye(2), backend="triton")

    compiled = torch.compile(mixed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(), mixed())
    said = [r.message for r in caplog.records if r.name == fallback.__name__]
    assert ["heads are mixed" in message for message in said] == [True]


def test_without_a_gpu_or_the_interpreter_it_is_refused(monkeypatch):
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    with pytest.raises(FlagError, match="needs a CUDA device, but q is on 'cpu'"):
        cope_attention(**inputs(), backend="triton")


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_where_no_tiles_fit_it_is_tiled(monkeypatch, caplog, kernel, packed):
    fallback._warn.cache_clear()

    def too_large(*_, **__):
        raise triton.OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(triton, kernel, too_large)
    cu_seqlens = torch.tensor([0, 13, 40]) if packed else None
    tensors = inputs()
    ours = run("triton", torch.float32, tensors, cu_seqlens=cu_seqlens)
    assert "no tiles fit" in caplog.text
    truth = run("tiled", torch.float32, tensors, cu_seqlens=cu_seqlens)
    for mine, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)
