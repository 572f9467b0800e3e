"""What the oracle tests of `path` and `wall` share: attention by a module, and by loops."""

import torch

import xcope
from xcope.modules import seam
from xcope.positions import AttendInputs, Geometry, scheme

DIM, HEADS, DIM_HEAD, SCALE = 6, 3, 4, 0.5
GEOMETRY = Geometry(dim=DIM, heads=HEADS, dim_head=DIM_HEAD)


def built(name, **options):
    torch.manual_seed(0)
    module = scheme(name, options).build(GEOMETRY).double()
    with torch.no_grad():  # what begins small, or alike everywhere, would go unseen
        for parameter in module.parameters():
            parameter.normal_()
    return module


def inputs(n=9):
    x = torch.randn(2, n, DIM, dtype=torch.float64, requires_grad=True)
    q, k, v = (torch.randn(2, HEADS, n, DIM_HEAD, dtype=torch.float64) for _ in range(3))
    return x, q, k, v


def attention(module, x, q, k, v, **given):
    """In O(n) memory, and by the module's definition."""
    its = AttendInputs(scale=SCALE, remembered=module.remember(x), **given)
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    logits = SCALE * q @ k.mT
    added = module(q, logits, seen.expand_as(logits), AttendInputs(**its.__dict__ | {"gate_k": k}))
    written = (logits + added).masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return module.attend(q, k, v, its), written


def by_loops(q, k, v, step, forgotten=None):
    """out of queries that ``step(x, b, h, t)`` carries; forgotten(b, h, t): log f."""
    outs = torch.zeros_like(v)
    rows = []
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        carried, left, logits = q[b, h, i], 0.0, []
        for t in range(i, -1, -1):
            logits.append(SCALE * (carried @ k[b, h, t]) + left)
            carried = step(carried, b, h, t)
            left = left + (0.0 if forgotten is None else forgotten(b, h, t))
        rows.append(torch.stack(logits[::-1]).softmax(0) @ v[b, h, : i + 1])
    return torch.stack(rows).view_as(outs)


def same(found, expected, module, x):
    """Outputs, and gradients of the parameters and of what they read."""
    wanted = [x, *module.parameters()]
    weight = torch.randn_like(expected)
    truth = torch.autograd.grad((expected * weight).sum(), wanted, retain_graph=True)
    for out in found:
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad((out * weight).sum(), wanted, retain_graph=True)
        for mine, theirs in zip(grads, truth, strict=True):
            torch.testing.assert_close(mine, theirs)


def decoder(position, **flags):
    torch.manual_seed(0)
    model = xcope.Decoder(
        dim=16, depth=2, heads=4, attn_dim_head=8, position=position, verbose=False, **flags
    )
    return model.eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def all_ways_agree(position):
    """Cache, padding, documents, logits written out: each gives what the whole row gives."""
    for flags in ({}, {"attn_kv_heads": 2}):
        _all_ways_agree(decoder(position, **flags))


def _all_ways_agree(model):
    x = torch.randn(2, 11, 16)
    whole = model(x)
    with seam.logits_kept(model):
        close(model(x), whole)
    _, cache = model(x[:, :6], return_hiddens=True)
    for t in range(6, 11):
        given = {"cache": cache, "cache_age": 1, "return_hiddens": True}
        new, cache = model(x[:, t : t + 1], input_not_include_cache=True, **given)
        close(new, whole[:, t : t + 1])
    padded = torch.cat((torch.randn(2, 3, 16), x), dim=1)
    close(model(padded, seq_start_pos=torch.tensor([3, 3]))[:, 3:], whole)
    for keep in (False, True):
        row = x.reshape(1, 22, 16)
        edges = torch.tensor([0, 11, 22])
        if keep:
            with seam.logits_kept(model):
                packed = model(row, cu_seqlens=edges)
        else:
            packed = model(row, cu_seqlens=edges)
        close(packed.view_as(whole), whole)
