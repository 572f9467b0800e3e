"""What the compiled kernels are made of, and when they are taken."""

import logging
import sys

import numpy as np
import pytest
import torch

from xcope.ops import compiled
from xcope.ops.cope import cope_attention

runtime = pytest.importorskip("xcope.ops.compiled.runtime")

from xcope.ops.compiled import simd  # noqa: E402


@runtime.compiled
def matrices(c, a, b, rows, columns, depth, there):
    simd.multiply(c, 4 * columns, a, 4 * depth, 4, b, 4 * columns, rows, columns, depth, there)


@runtime.compiled
def functions(x, y, n):
    for at in range(0, 4 * n, simd.LINE):
        simd.store(y + at, simd.exp(simd.load(x + at)))
        simd.store(y + 4 * n + at, simd.sigmoid(simd.load(x + at)))


@runtime.compiled
def turned(x, y):
    simd.transpose(x, simd.LINE, y, simd.LINE)


@runtime.compiled
def summed(x):
    return simd.total(simd.load(x))


def address(x):
    return x.ctypes.data


@pytest.mark.parametrize("rows", [1, 7, 8, 21])
@pytest.mark.parametrize("vectors", [1, 2, 3, 7])
@pytest.mark.parametrize("depth", [0, 1, 20])
@pytest.mark.parametrize("there", [False, True])
def test_products_of_matrices(rows, vectors, depth, there):
    make = np.random.default_rng(0)
    columns = vectors * simd.LANES
    a, b = (make.standard_normal(s).astype(np.float32) for s in ((rows, depth), (depth, columns)))
    c = make.standard_normal((rows, columns)).astype(np.float32)
    truth = a.astype(np.float64) @ b + (c if there or not depth else 0)
    matrices(address(c), address(a), address(b), rows, columns, depth, there)
    np.testing.assert_allclose(c, truth, rtol=1e-5, atol=1e-5)


def test_exp_and_sigmoid():
    x = np.linspace(-120, 120, 64 * simd.LANES, dtype=np.float32)
    x[:3] = -np.inf, np.nan, np.inf
    y = np.empty((2, x.size), np.float32)
    functions(address(x), address(y), x.size)
    wide = torch.from_numpy(x).double()
    e, sigmoid = wide.exp(), wide.sigmoid()
    e[wide <= -50] = 0
    fine = ~(wide > 88)
    torch.testing.assert_close(
        torch.from_numpy(y[0]).double()[fine], e[fine], rtol=3e-7, atol=0, equal_nan=True
    )
    assert (y[0][(~fine).numpy()] > 1e38).all()
    torch.testing.assert_close(
        torch.from_numpy(y[1]).double(), sigmoid, rtol=0, atol=1e-7, equal_nan=True
    )


def test_transpose_and_total():
    x = np.arange(simd.LANES**2, dtype=np.float32).reshape(simd.LANES, simd.LANES)
    y = np.empty_like(x)
    turned(address(x), address(y))
    assert (y == x.T).all()
    assert summed(address(x[1])) == x[1].sum()


def test_without_numba_tiles_are_eager_and_it_is_said_once(monkeypatch, caplog):
    compiled._call.cache_clear()
    monkeypatch.setitem(sys.modules, "xcope.ops.compiled.call", None)
    try:
        with caplog.at_level(logging.INFO, "xcope"):
            for _ in range(2):
                assert compiled.call_for(torch.empty(0)) is None
        assert len(caplog.records) == 1
        q = torch.randn(1, 2, 20, 8, requires_grad=True)
        out = cope_attention(q, q, q, torch.randn(4, 8), backend="tiled")
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert grad.isfinite().all()
    finally:
        compiled._call.cache_clear()


def test_other_numbers_and_devices_are_eager():
    assert compiled.call_for(torch.empty(0)) is not None
    assert compiled.call_for(torch.empty(0, dtype=torch.float64)) is None
    assert compiled.call_for(torch.empty(0, device="meta")) is None


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_threads_share_out_the_work_alike(threads, heads):
    """However many: one head's queries are shared out, too, and what they gather is added up."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 200, 16, requires_grad=True) for _ in range(3))
    e = torch.randn(8, 16, requires_grad=True)
    tensors = (q, k, v, e)

    def run(backend):
        out = cope_attention(*tensors, backend=backend)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, again = run("tiled"), run("tiled")
    finally:
        torch.set_num_threads(before)
    for mine, same, true in zip(ours, again, run("reference"), strict=True):
        assert mine.equal(same)
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-3)
