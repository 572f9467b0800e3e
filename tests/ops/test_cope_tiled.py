"""The tiled CoPE backend equals the definition, in torch operations and compiled."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ways import WAYS, take

from xcope.errors import FlagError
from xcope.ops.cope import CopeInputs, cope_attention
from xcope.ops.cope.cpu import eager, walk


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    return take(request.param, monkeypatch)


def inputs(b=1, h=2, hk=None, i=40, j=None, d=8, dv=None, p=8, tables=False, scale=1.0):
    hk, j, dv = hk or h, j or i, dv or d
    q, k = scale * torch.randn(b, h, i, d), torch.randn(b, hk, j, d)
    v, e = torch.randn(b, hk, j, dv), torch.randn(*((h,) if tables else ()), p, d)
    return {"q": q, "k": k, "v": v, "pos_emb": e}


def run(backend, dtype, tensors, **options):
    """Output and all gradients, in float64."""
    leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items()}
    out = cope_attention(**leaves, backend=backend, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    grads = torch.autograd.grad((out.double() * weights).sum(), list(leaves.values()))
    return [out.detach().double(), *(g.double() for g in grads)]


def assert_exact(tensors, dtype=torch.float32, tolerance=1e-4, **options):
    """To 1e-4 or 1e-10, or to what the definition itself rounds away in this dtype."""
    tolerance = 1e-10 if dtype == torch.float64 else tolerance
    truth = run("reference", torch.float64, tensors, **options)
    rounded = run("reference", dtype, tensors, **options)
    ours = run("tiled", dtype, tensors, **options)
    for name, mine, theirs, true in zip(["out", *tensors], ours, rounded, truth, strict=True):
        error, own = (mine - true).norm(), (theirs - true).norm()
        # where the true gradient is zero, as of a table of one position, rounding is all there is
        allowed = tolerance * (true.norm() + 0.05 * true.numel() ** 0.5) + 2 * own
        assert error <= allowed, f"{name}: {error:.1e}, {allowed:.1e} allowed"


shapes = st.fixed_dictionaries(
    {
        "b": st.integers(1, 3),
        "h": st.sampled_from([1, 2, 4]),
        "i": st.sampled_from([1, 2, 15, 16, 17, 50, 65, 130]),
        "d": st.sampled_from([8, 16, 24, 128]),
        "p": st.sampled_from([1, 2, 5, 16, 64, 300]),
        "tables": st.booleans(),
    }
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=shapes,
    single=st.booleans(),
    extra=st.sampled_from([0, 1, 40, 200]),
    masked=st.sampled_from([None, "keys", "all"]),
    causal=st.booleans(),
    gates=st.booleans(),
    mixed=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(
    way, dtype, shape, single, extra, masked, causal, gates, mixed, seed
):
    torch.manual_seed(seed)
    hk = 1 if single else shape["h"]
    i, j = shape["i"], shape["i"] + extra
    tensors = inputs(**shape, hk=hk, j=j, dv=12)
    if gates:
        tensors["gate_k"] = torch.randn_like(tensors["k"])
    if mixed:
        tensors["head_mix"] = torch.randn(shape["h"], shape["h"])
    mask = {
        None: None,
        "keys": torch.rand(shape["b"], j) > 0.5,
        "all": torch.rand(1, shape["h"], i, j) > 0.5,
    }[masked]
    assert_exact(tensors, dtype, mask=mask, causal=causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_keys_than_queries(way, dtype):
    assert_exact(inputs(i=70, j=20), dtype)


def test_rows_that_see_no_key_give_zeros(way):
    tensors = inputs(b=2, i=40)
    mask = torch.rand(2, 40) > 0.3
    mask[0, :20] = False
    out, *grads = run("tiled", torch.float32, tensors, mask=mask)
    assert not out[0, :, :20].any()
    assert all(g.isfinite().all() for g in grads)
    assert not grads[0][0, :, :20].any()


def test_inputs_that_are_not_contiguous(way):
    tensors = inputs(i=50, d=16)
    strided = {n: t.mT.contiguous().mT for n, t in tensors.items()}
    strided["q"] = tensors["q"].repeat_interleave(2, dim=2)[:, :, ::2]
    assert not any(t.is_contiguous() for t in strided.values())
    for ours, same in zip(
        run("tiled", torch.float32, strided), run("tiled", torch.float32, tensors), strict=True
    ):
        torch.testing.assert_close(ours, same, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "pos_emb"])
def test_gradient_of_one_input_alone(way, wanted):
    tensors = inputs(i=50)
    truth = dict(zip(["out", *tensors], run("tiled", torch.float32, tensors), strict=True))
    leaf = tensors[wanted].requires_grad_()
    out = cope_attention(**tensors, backend="tiled")
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    (grad,) = torch.autograd.grad((out.double() * weights).sum(), leaf)
    torch.testing.assert_close(grad.double(), truth[wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e2])
def test_extreme_gates(way, size):
    """Gates of exactly 0 and 1: counts are integers, and stay so when they are taken back.

    A gate's logit near 0 is a difference of terms of this size, rounded to 2^−24 of them: for the
    few gates between 0 and 1 that is a relative error of g (1 − g), in the definition as here.
    """
    tensors = inputs(i=60, p=16)
    tensors["gate_k"] = size * torch.randn_like(tensors["k"])
    assert_exact(tensors, tolerance=max(1e-4, size * 2**-24))
    assert_exact(tensors, torch.float64)


@pytest.mark.parametrize("name", ["q", "k"])
def test_extreme_logits(way, name):
    """Logits of ±1e4: rows attend to one key, so that gradients of q and k cancel to nothing.

    In tiles of torch operations the rounding of 1e4 · ds is left of them.
    """
    tensors = inputs(i=60, p=16)
    tensors[name] *= 1e4
    truth = run("reference", torch.float64, tensors)
    rounded = run("reference", torch.float32, tensors)
    ours = run("tiled", torch.float32, tensors)
    for which, (mine, true, its) in enumerate(zip(ours, truth, rounded, strict=True)):
        allowed = 1e-4 * true.norm() + 2 * (its - true).norm() + 1e-10
        if way == "eager" and which in (1, 2, 4):  # q, k, table
            allowed += 1e4 * 1e-6 * true.numel() ** 0.5
        assert (mine - true).norm() <= allowed


@pytest.mark.parametrize("p", [4, 16, 100])
def test_counts_that_are_integers(way, p):
    """No gate at all, or half a gate each: positions land on the table's integers."""
    tensors = inputs(i=60, p=p)
    tensors["gate_k"] = torch.zeros_like(tensors["k"])
    assert_exact(tensors)
    assert_exact(tensors, torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_as_the_definition_does(way, dtype):
    tensors = {n: t.to(dtype).float() for n, t in inputs(i=60, d=16, p=16).items()}
    truth = run("reference", torch.float64, tensors)
    ours, reference = (run(backend, dtype, tensors) for backend in ("tiled", "reference"))
    for mine, theirs, true in zip(ours, reference, truth, strict=True):
        assert (mine - true).norm() <= 2 * (theirs - true).norm()


@pytest.mark.parametrize("temp", [0.03, 0.05])
def test_soft_one_hot_equals_the_full_sum(way, temp):
    tensors = inputs(i=50, p=12)
    assert_exact(tensors, soft_onehot=True, soft_onehot_temp=temp)


def test_soft_one_hot_of_a_high_temperature_needs_the_reference():
    tensors = inputs(i=20)
    with pytest.raises(FlagError, match=r"0\.2 is above"):
        cope_attention(**tensors, soft_onehot=True, soft_onehot_temp=0.2, backend="tiled")
    cope_attention(**tensors, soft_onehot=True, soft_onehot_temp=0.2)


@pytest.fixture
def kinds(monkeypatch):
    """How many tiles the forward counts in, and how many are plain when it comes to them."""
    take("eager", monkeypatch)
    kinds = {"counted": 0, "plain": 0}
    work = eager.forward

    def watched(s, a, rows, tile, sharpness):
        kinds["plain" if (rows.start >= 0).all() else "counted"] += 1
        work(s, a, rows, tile, sharpness)

    monkeypatch.setattr(eager, "forward", watched)
    return kinds


def test_past_saturation_tiles_are_plain(kinds):
    """Gates of one half fill eight positions with fourteen keys: one or two tiles of 64."""
    tensors = inputs(i=400, p=8)
    tensors["q"].zero_()
    run("tiled", torch.float32, tensors)
    query_tiles, tiles = 400 // 16, sum(-(-16 * t // 64) for t in range(1, 26))
    assert kinds["counted"] + kinds["plain"] == tiles
    assert query_tiles <= kinds["counted"] <= 2 * query_tiles


def test_without_saturation_every_tile_counts(kinds):
    run("tiled", torch.float32, inputs(i=400, p=400))
    assert kinds["plain"] == 0
    assert kinds["counted"] > 50


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "p"), [(700, 16), (700, 1000)], ids=["saturating", "long table"])
def test_tiles_of_the_usual_size(n, p, threads):
    torch.set_num_threads(threads)
    assert_exact(inputs(h=4, hk=2, i=n, j=n + 500, d=16, p=p))


def test_saturated_rows_are_not_counted_further(way):
    """Gates of one half fill eight positions with fourteen keys, of however many."""
    tensors = inputs(h=2, i=400, p=8)
    tensors["q"].zero_()
    q, k, v, e = tensors.values()
    *_, count, start = walk.forward(CopeInputs(q=q, k=k, v=v, pos_emb=e, scale=1.0))
    counted = torch.arange(1, 401) - start
    slack = 16 + 64  # the other rows of the tile, and the keys of one
    assert (counted[..., 200:] <= 14 + slack).all()
    assert (count[..., 200:] >= 7).all()
    assert (counted[..., 200:] < 200).all()


def test_without_saturation_every_key_is_counted(way):
    q, k, v, e = inputs(i=100, p=300).values()
    *_, start = walk.forward(CopeInputs(q=q, k=k, v=v, pos_emb=e, scale=1.0))
    assert not start.any()
