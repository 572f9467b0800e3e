"""The definition of CoPE attention: gradients, shapes, and the properties that the paper states."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from biased_terms import make_terms
from hypothesis import given
from hypothesis import strategies as st

from xcope import cope_attention
from xcope.ops.biased import biased_attention, dense
from xcope.ops.cope import CopeInputs, cope_attention_reference, gpu, positions
from xcope.ops.inputs import FEW


def inputs(b=1, h=2, i=5, j=5, d=4, p=4, hk=None, dtype=torch.float64, table=1.0):
    hk = hk or h
    q, k, v = (torch.randn(b, n, m, d, dtype=dtype) for n, m in ((h, i), (hk, j), (hk, j)))
    return q, k, v, table * torch.randn(p, d, dtype=dtype)


def by_loops(q, k, v, e, scale, seen):
    """The paper's formula for one head, key by key."""
    out = torch.zeros(q.shape[0], v.shape[1], dtype=q.dtype)
    last = e.shape[0] - 1
    for i in range(q.shape[0]):
        keys = [j for j in range(k.shape[0]) if seen[i, j]]
        logits = []
        for j in keys:
            count = sum(torch.sigmoid(scale * q[i] @ k[t]) for t in keys if t >= j)
            p = min(float(count), last)
            f = math.floor(p)
            c = min(f + 1, last)
            w = p - f
            bias = (1 - w) * (q[i] @ e[f]) + w * (q[i] @ e[c])
            logits.append(scale * q[i] @ k[j] + bias)
        if keys:
            out[i] = torch.stack(logits).softmax(0) @ v[keys]
    return out


@given(
    b=st.integers(1, 2),
    hk=st.integers(1, 2),
    groups=st.integers(1, 3),
    i=st.integers(1, 6),
    extra=st.integers(0, 5),
    p=st.integers(1, 9),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_the_formula_written_in_loops(b, hk, groups, i, extra, p, masked, seed):
    torch.manual_seed(seed)
    h, j = hk * groups, i + extra
    q, k, v, e = inputs(b, h, i, j, 4, p, hk)
    mask = torch.rand(b, j) > 0.4 if masked else None
    given = CopeInputs(q=q, k=k, v=v, pos_emb=e, mask=mask, scale=0.7)
    out = cope_attention_reference(given)
    for row in range(b):
        for head in range(h):
            seen = torch.ones(i, j, dtype=torch.bool).tril(j - i)
            if mask is not None:
                seen = seen & mask[row]
            expected = by_loops(
                q[row, head], k[row, head // groups], v[row, head // groups], e, 0.7, seen
            )
            torch.testing.assert_close(out[row, head], expected)


def in_loops(x: CopeInputs, bias=None):
    """The formulas with all their variants, number by number; bias (b h i j)."""
    (b, h, i, _), j, groups = x.q.shape, x.k.shape[2], x.q.shape[1] // x.k.shape[1]
    out = torch.zeros(*x.q.shape[:3], x.v.shape[-1], dtype=x.q.dtype)
    documents = [j] if x.cu_seqlens is None else x.cu_seqlens[1:].tolist()
    of = [sum(end <= t for end in documents) for t in range(j)]

    def sees(row, head, query, key):
        if (x.causal and key > j - i + query) or (
            x.cu_seqlens is not None and of[query] != of[key]
        ):
            return False
        return x.mask is None or bool(x.mask.expand(b, h, i, j)[row, head, query, key])

    def logit(row, head, query, key, k):
        s = x.scale * (x.q[row, head, query] @ k[row, head // groups, key])
        return s if bias is None or k is x.gate_k else s + bias[row, head, query, key]

    def gate(row, head, query, key):
        k = x.k if x.gate_k is None else x.gate_k
        if x.head_mix is None:
            return torch.sigmoid(logit(row, head, query, key, k))
        mixed = [x.head_mix[head, a] * logit(row, a, query, key, k) for a in range(h)]
        return torch.sigmoid(sum(mixed))

    def position_bias(row, head, query, count):
        table = x.pos_emb if x.pos_emb.ndim == 2 else x.pos_emb[head]
        read, last = [float(x.q[row, head, query] @ e) for e in table], len(table) - 1
        p = min(float(count), last)
        if x.soft_onehot:
            weights = [math.exp(-abs(p - m) / x.soft_onehot_temp) for m in range(last + 1)]
            return sum(w * r for w, r in zip(weights, read, strict=True)) / sum(weights)
        f = math.floor(p)
        return (1 - (p - f)) * read[f] + (p - f) * read[min(f + 1, last)]

    for row, head, query in itertools.product(range(b), range(h), range(i)):
        keys = [key for key in range(j) if sees(row, head, query, key)]
        weights, count = {}, 0.0
        for key in reversed(keys):
            count = count + gate(row, head, query, key)
            s = logit(row, head, query, key, x.k) + position_bias(row, head, query, count)
            weights[key] = math.exp(s)
        for key, weight in weights.items():
            out[row, head, query] += weight / sum(weights.values()) * x.v[row, head // groups, key]
    return out


@pytest.mark.parametrize(
    "variant",
    ["plain", "few keys", "both ways", "mask", "tables", "soft one-hot", "gate keys", "gates of v",
     "mixed heads", "mixed gate keys", "bias", "documents", "documents, all at once"],
)  # fmt: skip
def test_the_reference_itself_equals_every_variant_written_in_loops(variant):
    b = 1 if "documents" in variant else 2
    i, j = {"few keys": (4, 2), "mask": (3, 5)}.get(variant, (5, 5))
    q, k, v, e = inputs(b, 4, i, j, 3, 3, hk=2)
    x = CopeInputs(q=q, k=k, v=v, pos_emb=e, scale=0.7, causal=variant != "both ways")
    terms, mix, gate_k = None, torch.randn(4, 4, dtype=q.dtype), torch.randn_like(k)
    if "bias" in variant or "at once" in variant:
        terms = make_terms("separable", b, 4, i, j)
    changes = {
        "mask": {"mask": torch.rand(b, 4, i, j) > 0.4},
        "tables": {"pos_emb": torch.randn(4, 3, 3, dtype=q.dtype)},
        "soft one-hot": {"soft_onehot": True},
        "gate keys": {"gate_k": gate_k},
        "gates of v": {"gate_k": v},
        "mixed heads": {"head_mix": mix},
        "mixed gate keys": {"head_mix": mix, "gate_k": gate_k},
        "bias": {"bias": terms},
        "documents": {"cu_seqlens": torch.tensor([0, 2, 2, 5])},
        "documents, all at once": {
            "cu_seqlens": torch.tensor([0, 2, 2, 5]), "bias": terms, "gate_k": gate_k,
            "head_mix": mix, "mask": torch.rand(1, 1, 1, 5) > 0.3, "soft_onehot": True,
        },
    }  # fmt: skip
    x = replace(x, **changes.get(variant, {}))
    truth = in_loops(x, None if terms is None else dense(terms, j).expand(b, 4, i, j))
    torch.testing.assert_close(cope_attention_reference(x), truth)


LENGTHS = [1, FEW, FEW + 1, 129]  # of the path for a few queries, and of a tile of queries
BACKENDS = [("reference", torch.float64), ("tiled", torch.float64), ("tiled", torch.float32)]
BACKENDS += [("triton", torch.float32), ("auto", torch.float32)]


def of_backend(name):
    if name == "triton":
        pytest.importorskip("xcope.ops.cope.gpu.launch", reason="Triton is not installed")
        if not gpu.interpreted():
            pytest.skip("the kernels are compiled here: scripts/gpu_check.py tests them")
    return name


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str)
@pytest.mark.parametrize("i", LENGTHS)
@pytest.mark.parametrize("p", [3, 400], ids=["saturating", "counting on"])
@pytest.mark.parametrize("grad", [True, False])
def test_every_backend_equals_the_loops_on_both_sides_of_its_thresholds(backend, dtype, i, p, grad):
    q, k, v, e = (t.to(dtype) for t in inputs(1, 1, i, i + 40, 4, p))
    q.requires_grad_(grad)
    out = cope_attention(q, k, v, e, scale=0.7, backend=of_backend(backend))
    q, k, v, e = (t.detach().double() for t in (q[0, 0], k[0, 0], v[0, 0], e))
    rows = [0, i // 2, i - 1]
    seen = torch.ones(i, i + 40, dtype=torch.bool).tril(40)[rows]
    truth = by_loops(q[rows], k, v, e, 0.7, seen)
    torch.testing.assert_close(out[0, 0, rows].double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("i", LENGTHS)
@pytest.mark.parametrize("grad", [True, False])
def test_without_a_table_it_is_attention_written_in_loops(backend, dtype, i, grad):
    q, k, v, _ = (t.to(dtype) for t in inputs(1, 1, i, i + 3))
    q.requires_grad_(grad)
    out = biased_attention(q, k, v, None, scale=0.7, backend=backend)[0, 0]
    for row in (0, i // 2, i - 1):
        keys = range(row + 4)
        logits = torch.stack([0.7 * q[0, 0, row] @ k[0, 0, j] for j in keys])
        truth = sum(w * v[0, 0, j] for w, j in zip(logits.softmax(0), keys, strict=True))
        torch.testing.assert_close(out[row], truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_onehot": True},
        {"mask": torch.tensor([[True, True, False, True, True, True, True]])},
        {"causal": False},
        {"gate_k": "random"},
        {"gate_k": "v"},
        {"head_mix": "random"},
        {"tables": 2},
    ],
    ids=str,
)
def test_gradcheck(options):
    options = dict(options)
    q, k, v, e = inputs(1, 2, 4, 7, 3, 4, hk=1)
    if options.pop("tables", None):
        e = torch.randn(2, 4, 3, dtype=torch.float64)
    if options.get("gate_k") == "random":
        options["gate_k"] = torch.randn_like(k).requires_grad_()
    elif options.get("gate_k") == "v":
        options["gate_k"] = v
    if options.get("head_mix") == "random":
        options["head_mix"] = torch.randn(2, 2, dtype=torch.float64).requires_grad_()
    tensors = [t.requires_grad_() for t in (q, k, v, e)]

    def attention(*t):
        return cope_attention(*t, **options, backend="reference")

    assert torch.autograd.gradcheck(attention, tensors)
    assert torch.autograd.gradgradcheck(attention, tensors)


@given(n=st.integers(1, 30), p=st.integers(1, 40), gate=st.integers(0, 1))
def test_constant_gates_give_ordinary_relative_positions(n, p, gate):
    pos = positions(torch.full((1, 1, n, n), float(gate)).tril(), p)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    relative = (gate * (i - j + 1)).clamp(0, p - 1)
    assert torch.equal(pos[0, 0].tril(), relative.tril().float())


@given(n=st.integers(2, 12), p=st.integers(2, 12), seed=st.integers(0, 2**16))
def test_a_key_that_gates_to_zero_does_not_move_the_count(n, p, seed):
    torch.manual_seed(seed)
    gates = torch.rand(n, n, dtype=torch.float64).tril()
    dead = int(torch.randint(n, ()))
    gates[:, dead] = 0
    others = [j for j in range(n) if j != dead]
    torch.testing.assert_close(positions(gates, p)[:, others], positions(gates[:, others], p))


@given(n=st.integers(1, 30), p=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_positions_never_exceed_the_table_and_fall_towards_the_query(n, p, seed):
    torch.manual_seed(seed)
    pos = positions((8 * torch.randn(n, n)).sigmoid().tril(), p)
    assert pos.max() <= p - 1
    assert pos.min() >= 0
    assert (pos.diff(dim=-1) <= 1e-5).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("soft_onehot", [True, False])
def test_zero_table_gives_plain_attention(causal, soft_onehot):
    q, k, v, e = inputs(2, 4, 9, 9, 8, 5, table=0.0)
    out = cope_attention(q, k, v, e, causal=causal, soft_onehot=soft_onehot)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def test_saturated_gates_with_a_far_key_read_the_last_row_of_the_table():
    q, k, v, e = inputs(1, 1, 1, 40, 8, 3)
    q, k = torch.ones_like(q), 10 * torch.ones_like(k)  # every gate is 1
    bias = q[0, 0, 0] @ e.T
    logits = torch.full((40,), 8**-0.5 * 80.0, dtype=torch.float64) + bias[2]
    logits[-1] += bias[1] - bias[2]
    expected = logits.softmax(0) @ v[0, 0]
    torch.testing.assert_close(cope_attention(q, k, v, e)[0, 0, 0], expected)


def test_cached_keys_give_the_last_rows_of_the_whole():
    q, k, v, e = inputs(2, 4, 12, 12, 8, 6, hk=2)
    whole = cope_attention(q, k, v, e)
    for last in (1, 5):
        torch.testing.assert_close(cope_attention(q[:, :, -last:], k, v, e), whole[:, :, -last:])


def test_masked_keys_are_as_if_they_were_not_there():
    q, k, v, e = inputs(1, 2, 3, 9, 8, 6)
    keep = torch.tensor([0, 2, 3, 6, 7, 8])
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[:, keep] = True
    without = cope_attention(q, k[:, :, keep], v[:, :, keep], e)
    torch.testing.assert_close(cope_attention(q, k, v, e, mask=mask), without)
    torch.testing.assert_close(cope_attention(q, k, v, e, mask=mask[:, None, None, :]), without)


def test_rows_that_see_nothing_give_zeros_and_finite_gradients():
    q, k, v, e = inputs(1, 2, 5, 5, 4, 3)
    mask = torch.tensor([[False, False, True, True, True]])
    tensors = [t.requires_grad_() for t in (q, k, v, e)]
    out = cope_attention(*tensors, mask=mask)
    assert torch.equal(out[:, :, :2], torch.zeros_like(out[:, :, :2]))
    out.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in tensors)


def test_more_queries_than_keys_leaves_the_first_ones_empty():
    q, k, v, e = inputs(1, 1, 5, 3, 4, 3)
    out = cope_attention(q, k, v, e)
    assert torch.equal(out[:, :, :2], torch.zeros_like(out[:, :, :2]))
    torch.testing.assert_close(out[:, :, 2:], cope_attention(q[:, :, 2:], k, v, e))


def test_soft_one_hot_approaches_the_nearest_integer_as_the_temperature_falls():
    q, k, v, e = inputs(1, 1, 6, 6, 4, 5)
    cold = cope_attention(q, k, v, e, soft_onehot=True, soft_onehot_temp=1e-4)
    s = (q @ k.mT / 2).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    nearest = positions(s.sigmoid(), 5).round().long()
    bias = (q @ e.T).gather(-1, nearest)
    torch.testing.assert_close(cold, (s + bias).softmax(-1) @ v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_dtypes_are_counted_in_float32(dtype):
    q, k, v, e = inputs(1, 2, 300, 300, 16, 256, dtype=torch.float64, table=0.3)
    exact = cope_attention(q, k, v, e)
    short = cope_attention(*(t.to(dtype) for t in (q, k, v, e)))
    assert short.dtype == dtype
    error = (short.double() - exact).abs().max() / exact.abs().max()
    assert error < {torch.float16: 0.01, torch.bfloat16: 0.08, torch.float32: 1e-4}[dtype]


ok = {"q": (1, 4, 5, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 8), "pos_emb": (3, 8)}


@pytest.mark.parametrize(
    ("shapes", "options", "said"),
    [
        ({"q": (4, 5, 8)}, {}, r"q must be \(b h n d\).*\(4 5 8\)"),
        ({"k": (2, 2, 5, 8)}, {}, "batch size"),
        ({"k": (1, 2, 5, 4)}, {}, r"k \(1 2 5 4\) and q \(1 4 5 8\)"),
        ({"k": (1, 3, 5, 8), "v": (1, 3, 5, 8)}, {}, "no multiple of the 3 heads"),
        ({"v": (1, 2, 6, 8)}, {}, r"v \(1 2 6 8\)"),
        ({"pos_emb": (3, 7)}, {}, r"pos_emb \(3 7\)"),
        ({"pos_emb": (8,)}, {}, r"pos_emb \(8\)"),
        ({"pos_emb": (2, 3, 8)}, {}, "2 tables, but q .* has 4 heads"),
        ({"pos_emb": (0, 8)}, {}, "max_pos 0"),
        ({}, {"mask": torch.ones(1, 4, dtype=torch.bool)}, r"mask \(1 4\)"),
        ({}, {"mask": torch.ones(5, 5, dtype=torch.bool)}, r"mask \(5 5\)"),
        ({}, {"mask": torch.ones(1, 3, 5, 5, dtype=torch.bool)}, r"broadcast to \(1 4 5 5\)"),
        (
            {},
            {"mask": torch.ones(1, 5)},
            r"mask \(1 5\) must be bool, True where .* is torch.float32",
        ),
        ({}, {"mask": torch.ones(1, 5, 5, dtype=torch.bool)}, r"\(1 5\), or have 4 dimensions"),
        ({}, {"mask": torch.ones(1, 5, dtype=torch.bool, device="meta")}, "mask is on meta, but q"),
        ({}, {"gate_k": torch.ones(1, 2, 5, 8, device="meta")}, "gate_k is on meta, but q"),
        ({}, {"head_mix": torch.ones(4, 4).long()}, r"head_mix must be floating .* torch\.int64"),
        ({"q": (1, 4, 5, 0), "k": (1, 2, 5, 0)}, {}, r"q \(1 4 5 0\) has heads of no dimension"),
        ({}, {"gate_k": torch.ones(1, 2, 4, 8)}, r"gate_k \(1 2 4 8\)"),
        ({}, {"head_mix": torch.ones(2, 2)}, r"must be \(4 4\)"),
        ({}, {"soft_onehot_temp": 0.0}, "above 0"),
        ({}, {"backend": "tritn"}, "'tritn' is not a CoPE backend"),
    ],
)
def test_bad_input_names_the_shapes(shapes, options, said):
    tensors = [torch.randn(*shape) for shape in (ok | shapes).values()]
    with pytest.raises(ValueError, match=said):
        cope_attention(*tensors, **options)


def test_bad_dtypes():
    tensors = [torch.randn(*shape) for shape in ok.values()]
    with pytest.raises(ValueError, match=r"floating point, but is torch\.int64"):
        cope_attention(*(t.long() for t in tensors))
    with pytest.raises(ValueError, match=r"k is torch\.float64, but q is torch\.float32"):
        cope_attention(tensors[0], tensors[1].double(), *tensors[2:])
