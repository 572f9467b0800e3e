"""Every scheme with every tool, and the tools' page; operators differentiated twice."""

import copy
import pickle

import pytest
import torch
import x_transformers
from schemes import KINDS
from tools import PAGE, TOOLS, loss_of, model_of, page, same, tokens
from torch.autograd import forward_ad, gradgradcheck
from torch.func import grad, hessian, jacrev, vmap

import xcope
from xcope.errors import FlagError
from xcope.ops.biased import ByDistance, Piecewise, Separable, biased_attention
from xcope.ops.documents import within_documents
from xcope.ops.polar import polar
from xcope.ops.rotate import rotate

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.check.__name__)
def test_every_kind_of_scheme_with_every_tool(tool, name):
    tool.check(name)


def test_the_page_is_what_the_list_of_tools_gives():
    assert PAGE.read_text() == page(), "python tests/tools.py renews it"


def test_what_the_page_says_of_compiled_models_is_true():
    compiled = torch.compile(model_of("cope"), backend="aot_eager")
    x = [p for p in compiled.parameters() if p.requires_grad]
    once = torch.autograd.grad(loss_of(compiled(tokens())), x, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="not currently support double backward"):
        sum(g.sum() for g in once if g is not None).backward()


FLAGS = {
    "flash cross-attention": {"attn_flash": True, "cross_attend": True},
    "low-rank maps": {
        "attn_aggregated_residuals": True,
        "attn_aggregated_residual_kwargs": {"lora_rank": 4},
    },
    "a scheme of x-transformers": {"attn_use_rel_proj_pos_bias": True},
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_of_x_transformers_can_be_copied_too(flags):
    sizes = {"dim": 32, "depth": 2, "heads": 2, "attn_dim_head": 16}
    decoder = xcope.Decoder(**sizes, **FLAGS[flags]).eval()
    x = torch.randn(1, 9, 32)
    context = {"context": torch.randn(1, 5, 32)} if "cross_attend" in FLAGS[flags] else {}
    truth = decoder(x, **context)
    for twin in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        same(twin(x, **context), truth)
        assert all(twin.get_submodule(path) is one for path, one in twin.named_modules())


# -- logits for those who clip them ------------------------------------------------------------


def test_clipping_without_logits_says_how_to_get_them():
    model = model_of("rotary")
    _, intermediates = model(tokens(), return_intermediates=True)
    with pytest.raises(FlagError, match="return_attn=True beside return_intermediates=True"):
        model.attn_qk_clip_(intermediates)


@pytest.mark.parametrize("name", ["rotary", "alibi", "forgetting"])
def test_clipping_with_logits_is_that_of_x_transformers(name):
    ours = model_of(name)
    decoder, wrapper = xcope.schemes()[name].counterpart()
    sizes = {"dim": 32, "depth": 1, "heads": 2, "attn_dim_head": 16, "ff_mult": 1}
    theirs = x_transformers.TransformerWrapper(
        num_tokens=20,
        max_seq_len=64,
        attn_layers=x_transformers.Decoder(**sizes, **decoder),
        **wrapper,
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    before = ours.attn_layers.layers[0][1].to_q.weight.clone()
    for model in (ours, theirs):
        _, intermediates = model(tokens(), return_intermediates=True, return_attn=model is ours)
        model.attn_qk_clip_(intermediates, tau=0.01)
    clipped = ours.attn_layers.layers[0][1].to_q.weight
    assert not torch.equal(clipped, before)
    same(clipped, theirs.attn_layers.layers[0][1].to_q.weight)


# -- operators ---------------------------------------------------------------------------------


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


N, D = 5, 2


def heads(h=2):
    return numbers(1, h, N, D)


def places():
    return torch.arange(N)


def of_distance(q, k, v, table):
    return biased_attention(q, k, v, ByDistance(table, places(), places()))


def of_segments(q, k, v, slope, offset, warp, shrink):
    # f continuous at its knot, as forms of this kind are
    offset = torch.stack((offset, offset + (slope[:, 0] - slope[:, 1]) * 0.3), dim=-1)
    knots = torch.tensor([0.3], dtype=torch.float64)
    return biased_attention(
        q, k, v, Piecewise(slope, offset, knots, warp, shrink, places(), places())
    )


def plain(q, k, v):
    return biased_attention(q, k, v, None)


OPERATORS = {
    "cope": (xcope.cope_attention, lambda: (heads(), heads(), heads(), numbers(5, D))),
    "cope of one tensor": (
        lambda q, e: xcope.cope_attention(q, q, q, e),
        lambda: (heads(), numbers(5, D)),
    ),
    "cope, tables and gates of their own": (
        lambda q, k, v, e, g, m: xcope.cope_attention(q, k, v, e, gate_k=g, head_mix=m),
        lambda: (heads(), heads(h=1), heads(h=1), numbers(2, 5, D), heads(h=1), numbers(2, 2)),
    ),
    "cope, soft one-hot and biased": (
        lambda q, k, v, e, row, key: xcope.cope_attention(
            q, k, v, e, soft_onehot=True, bias=Separable(row, key)
        ),
        lambda: (heads(), heads(), heads(), numbers(5, D), numbers(2, N), numbers(2, N)),
    ),
    "cope, masked": (
        lambda q, k, v, e: xcope.cope_attention(
            q, k, v, e, mask=torch.tensor([[True, False, True, True, False]])
        ),
        lambda: (heads(), heads(), heads(), numbers(5, D)),
    ),
    "separable": (
        lambda q, k, v, row, key: biased_attention(q, k, v, Separable(row, key)),
        lambda: (heads(), heads(), heads(), numbers(2, N), numbers(2, N)),
    ),
    "by distance": (of_distance, lambda: (heads(), heads(), heads(), numbers(2, 4))),
    "piecewise": (
        of_segments,
        lambda: (heads(), heads(), heads(), numbers(2, 2), numbers(2), numbers(N), numbers(N)),
    ),
    "plain": (plain, lambda: (heads(), heads(h=1), heads(h=1))),
    "polar": (
        lambda x, phase: polar(x, ANGLES.cos(), ANGLES.sin(), phase),
        lambda: (heads(), numbers(2, D)),
    ),
    "rotate": (
        lambda x: rotate(x, ANGLES[:, :1].cos(), ANGLES[:, :1].sin()), lambda: (heads(),)
    ),
}  # fmt: skip
ANGLES = torch.linspace(0, 3, N * D, dtype=torch.float64).view(N, D)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_gradients(name):
    operator, inputs = OPERATORS[name]
    assert gradgradcheck(operator, inputs(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", OPERATORS)
def test_transforms_and_forward_mode(name):
    operator, inputs = OPERATORS[name]
    first, *others = (t.detach() for t in inputs())

    def loss(x):
        return operator(x, *others).square().sum()

    leaf = first.clone().requires_grad_()
    (truth,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    same(grad(loss)(first), truth)
    same(vmap(grad(loss))(torch.stack((first, first)))[1], truth)
    same(hessian(loss)(first), jacrev(jacrev(loss))(first))
    with forward_ad.dual_level():
        moved = loss(forward_ad.make_dual(first, torch.ones_like(first)))
        same(forward_ad.unpack_dual(moved).tangent, truth.sum())


def test_documents_too():
    edges = torch.tensor([0, 2, N])
    q, k, v, e = heads(), heads(), heads(), numbers(5, D)

    def twice(run):
        (once,) = torch.autograd.grad(run().square().sum(), q, create_graph=True)
        return torch.autograd.grad(once.square().sum(), (q, k, v, e))

    packed = twice(lambda: xcope.cope_attention(q, k, v, e, cu_seqlens=edges))
    mask = within_documents(None, edges, N)
    same(packed, twice(lambda: xcope.cope_attention(q, k, v, e, mask=mask, backend="reference")))


def test_a_compiled_gradient_is_the_same():
    k, v, e = heads().detach(), heads().detach(), numbers(5, D).detach()

    def loss(q):
        return xcope.cope_attention(q, k, v, e).square().sum()

    q = torch.stack([heads().detach()] * 2)
    run = torch.compile(vmap(grad(loss)), backend="eager", fullgraph=True)
    same(run(q), vmap(grad(loss))(q))


def test_first_gradients_under_create_graph_hold_no_matrix_of_logits(monkeypatch):
    def definition(*_, **__):
        raise AssertionError("the definition was asked")

    monkeypatch.setattr("xcope.ops.cope.operator.cope_attention_reference", definition)
    monkeypatch.setattr("xcope.ops.biased.operator.biased_attention_reference", definition)
    q, e = heads(), numbers(5, D)
    runs = xcope.cope_attention(q, q, q, e), of_distance(q, q, q, numbers(2, 4))
    for out in runs:
        (once,) = torch.autograd.grad(out.sum(), q, create_graph=True)
        with pytest.raises(AssertionError, match="was asked"):
            once.sum().backward()


@pytest.mark.parametrize("what", ["zeros", "a key that is not finite"])
def test_second_derivatives_of_plain_attention_where_rows_look_broken(what):
    q, k, v = (heads() for _ in "qkv")
    with torch.no_grad():
        if what == "zeros":
            v.zero_()
        else:
            k[..., -1, :] = torch.nan
    attend = [
        lambda backend=backend: biased_attention(q, k, v, None, backend=backend)
        for backend in ("auto", "reference")
    ]
    found = []
    for run in attend:
        (once,) = torch.autograd.grad(run()[..., :-1, :].square().sum(), v, create_graph=True)
        found.append(torch.autograd.grad(once[..., 0, :].square().sum() + run().sum() * 0, (q, v)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)
