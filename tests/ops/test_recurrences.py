"""Relative positions, decays and sticks on CoPE's tiles: each equals its formula in plain loops."""

import itertools
import logging
import math

import pytest
import torch
from ways import WAYS, take

from xcope.errors import FlagError
from xcope.ops import fallback
from xcope.ops.cope import (
    CopeInputs,
    cope_attention,
    decay_attention,
    gpu,
    relative_attention,
    stick_breaking_attention,
)
from xcope.ops.cope.operator import cope

KINDS = {
    "relative": relative_attention,
    "decay": decay_attention,
    "stick": stick_breaking_attention,
}
DTYPES = {"eager": torch.float64, "compiled": torch.float32}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    return take(request.param, monkeypatch)


def inputs(kind, b=2, h=4, hk=2, i=20, j=None, d=8, p=5, r=None, gates=3, tables=False):
    j = j or i
    q, k, v = torch.randn(b, h, i, d), torch.randn(b, hk, j, d), torch.randn(b, hk, j, 6)
    tensors = {"q": q, "k": k, "v": v}
    if kind == "relative":
        tensors["pos_emb"] = torch.randn(*((h,) if tables else ()), p, r or d)
        if r:
            tensors["r"] = torch.randn(b, h, i, r)
    if kind == "decay":
        if gates:
            tensors["gate_q"] = torch.randn(b, h, i, gates)
        tensors["gate_k"] = torch.randn(b, h if gates else hk, j, gates or d)
    return tensors


def by_loops(kind, given, seen, scale, rate=1.0, own=None, remainder=True, bare=0,
             hidden_gates=False):  # fmt: skip
    """The papers' formulas, number by number, in float64; seen (b h i j)."""
    given = {name: t.double() for name, t in given.items()}
    q, k, v = (given[name] for name in "qkv")
    (b, h, i, _), j, groups = q.shape, k.shape[2], q.shape[1] // k.shape[1]
    out = torch.zeros(b, h, i, v.shape[-1], dtype=torch.float64)

    def gate(row, head, query, key):
        of, keys = given.get("gate_q"), given["gate_k"]
        its = keys[row, head // (h // keys.shape[1]), key]
        x = scale * q[row, head, query] @ its if of is None else of[row, head, query] @ its
        return rate * math.log(torch.sigmoid(x))

    for row, head, query in itertools.product(range(b), range(h), range(i)):
        keys = [key for key in range(j) if seen[row, head, query, key]]
        its_own, kv = j - i + query, head // groups
        s = {key: float(scale * q[row, head, query] @ k[row, kv, key]) for key in keys}
        weights = {}
        if kind == "stick":
            left = 1.0
            for key in reversed(keys):
                if key == its_own and not own:
                    continue
                share = 1 / (1 + math.exp(-s[key]))
                weights[key] = left * share
                left *= 1 - share
            if remainder and its_own in keys:
                weights[its_own] = weights.get(its_own, 0.0) + left
        for key in keys if kind != "stick" else []:
            if kind == "relative":
                between = sum(key < other for other in keys)
                table = given["pos_emb"]
                table = table if table.ndim == 2 else table[head]
                reader = given.get("r", q)[row, head, query]
                added = float(reader @ table[min(between, len(table) - 1)])
            elif key < bare:
                added = 0.0
            else:
                first, end = (key + 1, its_own + 1) if own else (key, its_own)
                gated = range(j) if hidden_gates else keys
                added = sum(gate(row, head, query, t) for t in gated if first <= t < end)
            weights[key] = math.exp(s[key] + added)
        total = 1.0 if kind == "stick" else sum(weights.values())
        for key, weight in weights.items():
            out[row, head, query] += weight / total * v[row, kv, key]
    return out


def visible(b, h, i, j, mask=None, causal=True):
    seen = torch.ones(i, j, dtype=torch.bool)
    seen = (seen.tril(j - i) if causal else seen).expand(b, h, i, j)
    return seen if mask is None else seen & mask[:, None, None]


CASES = {
    "relative": ("relative", {}, {}),
    "relative, a long table": ("relative", {"p": 40}, {}),
    "relative, asked for by r": ("relative", {"r": 3}, {}),
    "relative, a table for each head": ("relative", {"tables": True}, {}),
    "relative, masked": ("relative", {"j": 24}, {"mask": True}),
    "relative, both ways": ("relative", {}, {"causal": False}),
    "decay": ("decay", {}, {}),
    "decay, gates of the logits": ("decay", {"gates": None}, {}),
    "decay, up to the own gate": ("decay", {}, {"own": True, "rate": 0.5}),
    "decay, masked": ("decay", {"j": 24}, {"mask": True}),
    "decay, also by masked gates": ("decay", {"j": 24}, {"mask": True, "hidden_gates": True}),
    "decay, both ways": ("decay", {}, {"causal": False}),
    "decay, keys without gates": ("decay", {"j": 24}, {"bare": 4, "own": True}),
    "stick": ("stick", {}, {}),
    "stick, nothing for the own value": ("stick", {"i": 20, "j": 24}, {"remainder": False}),
    "stick, the own key too": ("stick", {}, {"own": True}),
    "stick, masked": ("stick", {"j": 24}, {"mask": True}),
    "stick, both ways": ("stick", {}, {"causal": False}),
    "stick, fewer keys than queries": ("stick", {"j": 12}, {}),
}


def case_of(name):
    kind, sizes, options = CASES[name]
    tensors, options = inputs(kind, **sizes), dict(options)
    (b, h, i, _), j = tensors["q"].shape, tensors["k"].shape[2]
    if options.get("mask"):
        mask = torch.rand(b, j) > 0.3
        mask[0, : j // 3] = False
        options["mask"] = mask
    seen = visible(b, h, i, j, options.get("mask"), options.get("causal", True))
    told = {n: o for n, o in options.items() if n not in ("mask", "causal")}
    truth = by_loops(kind, tensors, seen, 0.4, **told)
    return KINDS[kind], tensors, {"scale": 0.4, **options}, truth


@pytest.mark.parametrize("name", CASES)
def test_the_definition_equals_the_formula_in_loops(name):
    attend, tensors, options, truth = case_of(name)
    out = attend(**{n: t.double() for n, t in tensors.items()}, **options, backend="reference")
    torch.testing.assert_close(out, truth)


def gradients(attend, tensors, dtype, **options):
    given = {n: t.to(dtype).requires_grad_() for n, t in tensors.items()}
    out = attend(**given, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape)
    grads = torch.autograd.grad((out.double() * weights).sum(), list(given.values()))
    named = dict(zip(given, grads, strict=True))
    return {"out": out.detach().double(), **{n: g.double() for n, g in named.items()}}


def assert_close(found, truth, tolerance):
    for name, true in truth.items():
        size = float(true.abs().max())
        torch.testing.assert_close(
            found[name], true, atol=tolerance * max(size, 1.0), rtol=tolerance, msg=name
        )


@pytest.mark.parametrize("name", CASES)
def test_tiles_equal_the_definition_with_all_gradients(way, name):
    attend, tensors, options, truth = case_of(name)
    dtype = DTYPES[way]
    found = gradients(attend, tensors, dtype, **options, backend="tiled")
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found["out"], truth, atol=tolerance, rtol=tolerance)
    defined = gradients(attend, tensors, torch.float64, **options, backend="reference")
    assert_close(found, defined, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [70, 150])
def test_over_many_tiles_and_blocks_of_keys(way, kind, n):
    sizes = {"relative": {"p": 90}, "decay": {}, "stick": {}}[kind]
    tensors = inputs(kind, b=1, i=n, j=n + 20, **sizes)
    tensors["q"] = tensors["q"] - (2 if kind == "stick" else 0)
    found = gradients(KINDS[kind], tensors, DTYPES[way], backend="tiled")
    truth = gradients(KINDS[kind], tensors, torch.float64, backend="reference")
    assert_close(found, truth, 1e-9 if way == "eager" else 1e-4)


@pytest.mark.parametrize("shift", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("remainder", [True, False])
def test_sticks_that_break_soon_late_and_never(way, shift, remainder):
    """Where nothing is left keys are passed over; logits so low leave nearly all to the end."""
    tensors = inputs("stick", b=1, i=130, j=140)
    tensors["k"][..., 0] = shift
    tensors["q"][..., 0] = 3.0
    given = {"scale": 1.0, "remainder": remainder}
    found = gradients(stick_breaking_attention, tensors, DTYPES[way], **given, backend="tiled")
    truth = gradients(
        stick_breaking_attention, tensors, torch.float64, **given, backend="reference"
    )
    assert_close(found, truth, 1e-9 if way == "eager" else 1e-4)


@pytest.mark.parametrize("kind", ["decay", "stick"])
@pytest.mark.parametrize("size", [30.0, 1e4, 1e8])
def test_extreme_logits_stay_finite(way, kind, size):
    tensors = inputs(kind, b=1, i=70)
    wild = {"stick": ("q",), "decay": ("gate_q",)}[kind]
    tensors = {n: t * size if n in wild else t for n, t in tensors.items()}
    found = gradients(KINDS[kind], tensors, DTYPES[way], backend="tiled")
    truth = gradients(KINDS[kind], tensors, torch.float64, backend="reference")
    assert all(t.isfinite().all() for t in found.values())
    torch.testing.assert_close(found["out"], truth["out"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", ["decay", "stick"])
def test_a_long_row_ends_where_it_began(kind):
    """What is summed up forwards is taken off backwards: after 3,000 keys the sum is 0 again."""
    tensors = inputs(kind, b=1, h=1, hk=1, i=16, j=3000)
    if kind == "stick":
        tensors["k"][..., 0], tensors["q"][..., 0] = -8.0, 1.0
    found = gradients(KINDS[kind], tensors, torch.float32, scale=1.0, backend="tiled")
    truth = gradients(KINDS[kind], tensors, torch.float64, scale=1.0, backend="reference")
    assert_close(found, truth, 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_few_queries_without_gradients(way, name):
    attend, tensors, options, truth = case_of(name)
    few = {n: t[:, :, -3:] if n in ("q", "r", "gate_q") else t for n, t in tensors.items()}
    with torch.no_grad():
        out = attend(**{n: t.to(DTYPES[way]) for n, t in few.items()}, **options, backend="tiled")
    if options.get("causal", True):
        torch.testing.assert_close(out.double(), truth[:, :, -3:], atol=2e-5, rtol=2e-5)
    else:
        kind = next(kind for kind, function in KINDS.items() if function is attend)
        seen = visible(2, 4, 3, tensors["k"].shape[2], causal=False)
        expected = by_loops(kind, few, seen, 0.4)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_as_alone(way, kind):
    tensors = inputs(kind, b=1, i=40, **({"r": 3} if kind == "relative" else {}))
    tensors = {n: t.to(DTYPES[way]) for n, t in tensors.items()}
    edges = torch.tensor([0, 11, 11, 30, 40])
    together = KINDS[kind](**tensors, cu_seqlens=edges)
    defined = KINDS[kind](**tensors, cu_seqlens=edges, backend="reference")
    torch.testing.assert_close(together, defined, atol=1e-5, rtol=1e-4)
    for first, end in ((0, 11), (11, 30), (30, 40)):
        own = {n: t if n == "pos_emb" else t[:, :, first:end] for n, t in tensors.items()}
        alone = KINDS[kind](**own)
        torch.testing.assert_close(together[:, :, first:end], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_others(way, kind):
    tensors = inputs(kind, b=1, h=2, hk=1, i=21, j=23, **({"r": 3} if kind == "relative" else {}))
    for name in tensors:
        if name == "pos_emb":
            continue
        bad = {n: t.clone() for n, t in tensors.items()}
        bad[name][0, 0, 10, 1] = float("nan")
        found = gradients(KINDS[kind], bad, DTYPES[way], backend="tiled")
        truth = gradients(KINDS[kind], bad, torch.float64, backend="reference")
        for n, true in truth.items():
            finite = true.isfinite()
            assert torch.equal(found[n].isfinite(), finite), (name, n)
            torch.testing.assert_close(found[n][finite], true[finite], atol=1e-3, rtol=1e-3)
        assert not truth["out"].isfinite().all()
        assert truth["out"].isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_has_fake_tensors_and_autograd(kind):
    tensors = inputs(kind, b=1, i=9, **({"r": 3} if kind == "relative" else {}))
    names = {"gate_q": "r"}
    given = {names.get(n, n): t.requires_grad_() for n, t in tensors.items()}
    recurrence = {"relative": "distance"}.get(kind, kind)
    x = CopeInputs(**given, scale=0.4, recurrence=recurrence, remainder=True).with_all_heads()
    torch.library.opcheck(cope, (*x.flat(), "tiled"))


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_and_transforms_are_those_of_the_definition(kind):
    tensors = inputs(kind, b=2, i=7)
    leaves = [t.requires_grad_() for t in tensors.values()]
    seconds = []
    for backend in ("tiled", "reference"):
        out = KINDS[kind](**tensors, backend=backend).square().sum()
        first = torch.autograd.grad(out, leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for ours, truth in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-3 * float(truth.abs().max()), rtol=1e-3)
    shared = {n: None if n == "pos_emb" else 0 for n in tensors}

    def one(**given):
        return KINDS[kind](**{n: t if n == "pos_emb" else t[None] for n, t in given.items()})[0]

    rows = torch.vmap(lambda *given: one(**dict(zip(tensors, given, strict=True))),
                      in_dims=tuple(shared.values()))  # fmt: skip
    torch.testing.assert_close(
        rows(*tensors.values()), KINDS[kind](**tensors), atol=1e-5, rtol=1e-4
    )


def test_relative_positions_are_cope_with_all_gates_1(way):
    """Gates' keys that make every gate 1 to the last bit; CoPE reads its table one entry later."""
    tensors = {n: t.to(DTYPES[way]) for n, t in inputs("relative", j=24).items()}
    q = tensors["q"]
    q[..., 0] = 1.0
    gate_k = torch.zeros_like(tensors["k"])
    gate_k[..., 0] = 1e4
    table = torch.cat((torch.randn(1, 8).to(q), tensors["pos_emb"]))
    mask = torch.rand(2, 24) > 0.3
    cope = cope_attention(q, tensors["k"], tensors["v"], table, gate_k=gate_k, mask=mask)
    found = relative_attention(**tensors, mask=mask)
    torch.testing.assert_close(found, cope, atol=1e-6, rtol=1e-5)


def test_cope_with_a_table_that_falls_evenly_is_its_count_used_as_a_decay():
    """−λ p is read wherever q·e[p] is, so that what is added is −λ times CoPE's count."""
    q, k, v = (torch.randn(1, 2, 12, 8).double() for _ in range(3))
    q[..., 0] = 1.0
    table = torch.zeros(40, 8).double()
    table[:, 0] = -0.3 * torch.arange(40)
    s = 8**-0.5 * q @ k.mT
    seen = torch.ones(12, 12).bool().tril()
    counts = s.sigmoid().masked_fill(~seen, 0.0).flip(-1).cumsum(-1).flip(-1)
    weights = (s - 0.3 * counts).masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(cope_attention(q, k, v, table), weights @ v)


@pytest.mark.parametrize(
    ("kind", "changes", "flag"),
    [
        ("relative", {"r": torch.randn(2, 4, 19, 3)}, "r"),
        ("relative", {"pos_emb": torch.randn(5, 7)}, "pos_emb"),
        ("relative", {"r": torch.randn(2, 4, 20, 3)}, "pos_emb"),
        ("decay", {"gate_k": torch.randn(2, 4, 20, 9)}, "gate_k"),
        ("decay", {"gate_q": torch.randn(2, 4, 20)}, "r"),
        ("stick", {"backend": "tild"}, "backend"),
    ],
)
def test_what_does_not_fit_is_named(kind, changes, flag):
    with pytest.raises(FlagError) as told:
        KINDS[kind](**inputs(kind) | changes)
    assert told.value.flag == flag


@pytest.mark.parametrize("kind", KINDS)
def test_without_kernels_of_its_own_it_takes_the_tiles_and_says_so_once(kind, caplog):
    if not gpu.interpreted():
        pytest.skip("Triton's interpreter is not at hand")
    fallback._warn.cache_clear()
    tensors = inputs(kind)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = KINDS[kind](**tensors, backend="triton")
    torch.testing.assert_close(out, KINDS[kind](**tensors, backend="tiled"))
    (record,) = [r for r in caplog.records if r.name == fallback.__name__]
    assert "no kernels for it" in record.message
