"""Inputs lie in memory as they like: expanded, transposed, sliced; and may be empty or narrow."""

import pytest
import torch

from xcope.ops.biased import biased_attention
from xcope.ops.cope import cope_attention

LAYOUTS = {
    "transposed": lambda t: t.transpose(-3, -2).contiguous().transpose(-3, -2),
    "sliced": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "rows sliced": lambda t: t.repeat_interleave(3, -2)[..., ::3, :],
    "columns first": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "one for all": lambda t: t[:1].expand(t.shape),
}


def inputs(b, n, j, d, dv):
    tensors = {"q": torch.randn(b, 4, n, d), "k": torch.randn(b, 1, j, d)}
    tensors |= {"v": torch.randn(b, 1, j, dv), "pos_emb": torch.randn(4, 5, d)}
    return tensors | {"gate_k": torch.randn(b, 1, j, d), "head_mix": torch.randn(1, 4, 4)}


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 5, 12])
def test_any_layout_gives_what_contiguous_tensors_give(backend, grad, layout, n):
    tensors = inputs(2, n, n + 1, 6, 7)
    mask = LAYOUTS[layout](torch.rand(2, 4, n, n + 1) > 0.3)
    laid = {name: LAYOUTS[layout](t) for name, t in tensors.items()}
    for chosen in (laid, {n: t.contiguous() for n, t in laid.items()}):
        given = {n: t[0] if n == "head_mix" else t for n, t in chosen.items()}
        given["q"] = given["q"].detach().requires_grad_(grad)
        cope = cope_attention(**given, mask=mask, backend=backend)
        q, k, v = (given[name] for name in "qkv")
        biased = biased_attention(q, k, v, None, mask=mask, backend=backend)
        if chosen is laid:
            first = cope, biased
    torch.testing.assert_close(first, (cope, biased), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "sizes", [(0, 3, 3, 4, 4), (2, 0, 3, 4, 4), (2, 12, 0, 4, 4), (2, 3, 0, 4, 4), (1, 1, 1, 1, 1),
              (2, 9, 9, 5, 3), (0, 12, 12, 4, 4)],
)  # fmt: skip
def test_empty_and_narrow_inputs(backend, grad, sizes):
    tensors = inputs(*sizes)
    tensors["head_mix"] = tensors["head_mix"][0]
    given = {n: t.requires_grad_(grad) for n, t in tensors.items()}
    b, n, j, _, dv = sizes
    out = cope_attention(**given, backend=backend)
    other = biased_attention(*(given[name] for name in "qkv"), None, backend=backend)
    assert out.shape == other.shape == (b, 4, n, dv)
    if not j:
        assert not out.any()
        assert not other.any()
    if grad:
        (out.sum() + other.sum()).backward()
        assert all(t.grad.isfinite().all() for t in given.values())
