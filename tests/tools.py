"""PyTorch's own tools around a model: what each is, and how a scheme is checked with it.

`TOOLS` is what ``test_tools.py`` walks with every registered scheme, and what ``docs/tools.md``
is made from. ``python tests/tools.py`` writes that page.
"""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from schemes import KINDS, NAMES, ROOT, kind_of, position
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.utils import parameters_to_vector, parametrizations, prune, vector_to_parameters
from torch.utils.checkpoint import checkpoint

import xcope

PAGE = ROOT / "docs" / "tools.md"


def model_of(name, wrapper=None, **flags):
    """A small model of a scheme, whose every parameter acts."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 1, "heads": 2, "attn_dim_head": 16, "ff_mult": 1}
    model = xcope.TransformerWrapper(
        num_tokens=20,
        max_seq_len=64,
        attn_layers=xcope.Decoder(**sizes | flags, position=position(name)),
        **wrapper or {},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
    return model.eval()


def tokens(n=12, b=2):
    return torch.randint(20, (b, n), generator=torch.Generator().manual_seed(n))


def loss_of(logits):
    return (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).square().sum()


def same(ours, truth, **tolerance):
    torch.testing.assert_close(ours, truth, **tolerance or {"atol": 1e-5, "rtol": 1e-4})


# -- copies ------------------------------------------------------------------------------------


def deepcopied(name):
    model = model_of(name, {"tie_embedding": True})
    before = model(tokens())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    same(twin(tokens()), before)
    twin.token_emb.emb.weight.data *= 2  # both ends of the copy are tied, too
    assert not torch.allclose(twin(tokens()), before)


def saved_whole(name):
    model = model_of(name, {"tie_embedding": True}, attn_flash=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    same(torch.load(file, weights_only=False)(tokens()), model(tokens()))
    wrapper = xcope.AutoregressiveWrapper(model)
    again = pickle.loads(pickle.dumps(wrapper))
    prompt = tokens(4)
    texts = [one.generate(prompt, 6, temperature=0.0) for one in (wrapper, again)]
    assert torch.equal(*texts)


def averaged(name):
    model = model_of(name, {"tie_embedding": True})
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    ema.update_parameters(model)
    before = model(tokens())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    same(ema(tokens()), before)
    averages = [p.detach().clone() for p in ema.module.parameters()]
    ema.update_parameters(model)
    same([p.detach() for p in ema.module.parameters()], [average / 2 for average in averages])


# -- modules and parameters --------------------------------------------------------------------


def walked(name):
    model = model_of(name)
    for path, module in model.named_modules():
        assert model.get_submodule(path) is module, path
    for path, parameter in model.named_parameters():
        assert model.get_parameter(path) is parameter, path
    for path, buffer in model.named_buffers():
        assert model.get_buffer(path) is buffer, path
    for module in model.modules():
        children = [*module.children()]
        assert len(children) == len({*map(id, children)})
    visited = []
    model.apply(visited.append)
    assert {*map(id, visited)} == {*map(id, model.modules())}
    model.share_memory()
    vector = parameters_to_vector(model.parameters()).detach()
    before = model(tokens())
    vector_to_parameters(vector * 2, model.parameters())
    assert not torch.allclose(model(tokens()), before)


def parametrised(name):
    model = model_of(name)
    before = model(tokens())
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for linear in linears:
        parametrizations.weight_norm(linear)
    same(model(tokens()), before)
    loss_of(model(tokens())).backward()
    for linear in linears:
        torch.nn.utils.parametrize.remove_parametrizations(linear, "weight")
        prune.l1_unstructured(linear, "weight", amount=0.5)
    assert not torch.allclose(model(tokens()), before)
    for linear in linears:
        prune.remove(linear, "weight")


# -- derivatives -------------------------------------------------------------------------------


def gradients_of(model, ids, **keywords):
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss_of(model(ids)), parameters, allow_unused=True, **keywords)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def called_with_other_parameters(name):
    model, other = model_of(name), model_of(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    same(functional_call(model, state, (tokens(),)), other(tokens()))


def differentiated_by_sample(name):
    model, ids = model_of(name), tokens(b=3)
    state = {path: parameter.detach() for path, parameter in model.named_parameters()}

    def loss(state, row):
        return loss_of(functional_call(model, state, (row[None],)))

    ours = vmap(grad(loss), in_dims=(None, 0))(state, ids)
    for row, row_ids in enumerate(ids):
        truth = gradients_of(model, row_ids[None])
        same([ours[path][row] for path in state], truth, atol=1e-4, rtol=1e-3)


def differentiated_twice(name):
    model, ids = model_of(name).double(), tokens()
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def along(gradients):
        return sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    same(gradients_of(model, ids, create_graph=True), gradients_of(model, ids))
    along(gradients_of(model, ids, create_graph=True)).backward()
    ours = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    step, sides = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(d, alpha=sign * step)
        sides.append(gradients_of(model, ids))
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.sub_(d, alpha=sign * step)
    truth = [(up - down) / (2 * step) for up, down in zip(*sides, strict=True)]
    assert any(t.abs().max() > 1e-3 for t in truth)
    for path, mine, theirs in zip(dict(model.named_parameters()), ours, truth, strict=True):
        same(mine, theirs, atol=1e-4, rtol=1e-3, msg=lambda text, path=path: f"{path}: {text}")


def differentiated_by_torch_func(name):
    layers, x = model_of(name).attn_layers, torch.randn(1, 9, 32)
    direction = torch.randn_like(x)

    def last(x):
        return layers(x)[0, -1, :4]

    ours = jacrev(last)(x)
    leaf = x.clone().requires_grad_()
    truth = torch.stack(
        [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in last(leaf)]
    )
    same(ours, truth, atol=1e-4, rtol=1e-3)
    _, forward = jvp(last, (x,), (direction,))
    same(forward, (truth * direction).flatten(1).sum(1), atol=1e-4, rtol=1e-3)


def checkpointed(name):
    layers, x = model_of(name).attn_layers, torch.randn(1, 12, 32)
    results = []
    for call in (layers, lambda x: checkpoint(layers, x, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        (once,) = torch.autograd.grad(loss_of(call(leaf)), leaf, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), leaf)
        results.append((once, twice))
    same(results[1], results[0], atol=1e-4, rtol=1e-3)


# -- graphs ------------------------------------------------------------------------------------


def exported(name):
    model = model_of(name)
    b, n = torch.export.Dim("b"), torch.export.Dim("n", max=model.max_table_len)
    program = torch.export.export(model, (tokens(24),), dynamic_shapes=({0: b, 1: n},)).module()
    for batch, length in ((1, 1), (2, 24), (3, 50)):
        same(program(tokens(length, batch)), model(tokens(length, batch)))


def compiled(name):
    torch._dynamo.reset()
    model, counter = model_of(name), CompileCounterWithBackend("eager")
    run = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    for length in (12, 20, 31):
        model.zero_grad()
        loss_of(run(tokens(length))).backward()
        ours = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        loss_of(model(tokens(length))).backward()
        same(ours, [p.grad for p in model.parameters()], atol=1e-3, rtol=1e-3)
    assert counter.frame_count == 1


# -- places and dtypes -------------------------------------------------------------------------


def filled_from_meta(name):
    truth = model_of(name)
    with torch.device("meta"):
        on_meta, assigned = model_of(name), model_of(name)
    assert all(t.is_meta for t in (*on_meta.parameters(), *on_meta.buffers()))
    what_memory_held = partial(torch.full_like, fill_value=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", what_memory_held)
        models = [model.to_empty(device="cpu") for model in (on_meta, model_of(name))]
    for model in models:
        model.load_state_dict(truth.state_dict(), strict=True)
        same(model(tokens()), truth(tokens()))
    assigned.load_state_dict(truth.state_dict(), strict=True, assign=True)
    same(assigned(tokens()), truth(tokens()))


def rounded(model):
    """With parameters that bfloat16 has, in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def cast_and_back(name):
    truth = rounded(model_of(name))
    logits = truth(tokens())
    for dtype, tolerance in ((torch.bfloat16, 0.2), (torch.half, 0.05)):
        model = copy.deepcopy(truth).to(dtype)
        narrow = model(tokens())
        assert narrow.dtype is dtype
        same(narrow.float(), logits, atol=tolerance * logits.abs().max().item(), rtol=0)
        loss_of(narrow).backward()
        same(model.bfloat16().float()(tokens()), logits)


def loaded_from_bfloat16(name):
    truth, model = rounded(model_of(name)), model_of(name)
    state = {path: t.bfloat16() for path, t in truth.state_dict().items()}
    model.load_state_dict(state, strict=True)
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    same(model(tokens()), truth(tokens()))


def under_autocast(name):
    model = model_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens())
        loss_of(logits).backward()
    truth = model(tokens())
    same(logits.float(), truth, atol=0.2 * truth.abs().max().item(), rtol=0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def built_under_bfloat16(name):
    usual = model_of(name).bfloat16()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = model_of(name)
        model.load_state_dict(usual.state_dict(), strict=True)
        ours = model(tokens(60))
        assert ours.dtype is torch.bfloat16
        loss_of(ours).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    same(ours, usual(tokens(60)))


# -- sizes -------------------------------------------------------------------------------------


def empty(name):
    model = model_of(name)
    logits = model(tokens(12, b=0))
    assert logits.shape == (0, 12, 20)
    logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def one_token(name):
    model, ids = model_of(name), tokens()
    alone = model(ids[:, :1])
    same(alone, model(ids)[:, :1])
    loss_of(alone).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- the list ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """What people do with a model.

    Args:
        title: as the docs call it.
        holds: what is checked, for the docs.
        check: takes a scheme's name; fails unless it works.
    """

    title: str
    holds: str
    check: Callable[[str], None]


TOOLS = [
    Tool(
        "`copy.deepcopy`",
        "a copy shares nothing with the original, tied embeddings included",
        deepcopied,
    ),
    Tool(
        "`torch.save(model)`, `pickle`",
        "of whole models and generation wrappers, tied embeddings and `attn_flash` included",
        saved_whole,
    ),
    Tool("`AveragedModel` (EMA)", "averages do not follow the original", averaged),
    Tool(
        "`named_modules`, `get_submodule`, `apply`, `share_memory`, `parameters_to_vector`",
        "each module, parameter and buffer is found once, and by its name",
        walked,
    ),
    Tool("`weight_norm`, pruning", "every linear layer takes them", parametrised),
    Tool(
        "`functional_call`",
        "other parameters and buffers give what a model that has them gives",
        called_with_other_parameters,
    ),
    Tool(
        "`vmap(grad(…))`", "gradients of each sample are those of its own", differentiated_by_sample
    ),
    Tool(
        "`create_graph=True`",
        "gradients of gradients are those of finite differences in float64",
        differentiated_twice,
    ),
    Tool("`jacrev`, `jvp`", "row by row what `autograd` gives", differentiated_by_torch_func),
    Tool(
        "`torch.utils.checkpoint`",
        "around the layers: the same gradients, and gradients of gradients",
        checkpointed,
    ),
    Tool(
        "`torch.export`",
        "with a batch and a length of any size; the program runs at 1, 24 and 50 tokens",
        exported,
    ),
    Tool("`torch.compile(dynamic=True)`", "one graph, compiled once for all lengths", compiled),
    Tool(
        "meta device, `to_empty`, `load_state_dict`",
        "strictly, and with `assign=True`: the logits of the model that was saved",
        filled_from_meta,
    ),
    Tool(
        "`.bfloat16()`, `.half()` and back",
        "close to float32, and back in float32 nothing but parameters was rounded",
        cast_and_back,
    ),
    Tool(
        "a checkpoint of bfloat16",
        "in a float32 model: nothing but parameters was rounded",
        loaded_from_bfloat16,
    ),
    Tool("autocast", "to bfloat16: close to float32, with finite gradients", under_autocast),
    Tool(
        "`set_default_dtype(bfloat16)`",
        "what is built under it is a float32 model that was cast",
        built_under_bfloat16,
    ),
    Tool("an empty batch", "no logits, and gradients of zero", empty),
    Tool("one token", "what it gives at the beginning of a text", one_token),
]


def page():
    """The Markdown of ``docs/tools.md``."""

    def linked(name):
        return f"[`{name}`](schemes/{name}.md)"

    of_each = {name: [other for other in NAMES if kind_of(other) == name] for name in KINDS}
    told = [
        f"{linked(name)} (also {', '.join(map(linked, others))})" if others else linked(name)
        for name, (_, *others) in of_each.items()
    ]
    rows = "\n".join(f"| {tool.title} | {tool.holds} |" for tool in TOOLS)
    return f"""{HEAD}
| tool | what holds |
| --- | --- |
{rows}

The schemes are {", ".join(told)}.
{TAIL}"""


HEAD = """# PyTorch's tools around a model

Each row is a test that every kind of registered scheme passes,
[tests/test_tools.py](../tests/test_tools.py): of schemes that fill the slots with the same modules,
and differ in their numbers only, the first is tried. The page is made from its list: `python
tests/tools.py`.
"""

TAIL = """
## What it costs

- Gradients of gradients are those of the definition, in (b h n n) memory, when they are computed;
  the first gradients stay the fused ones. The soft one-hot of CoPE takes (b h n n max_pos). Plain
  attention, of schemes that leave it to PyTorch, takes the definition for the first gradients, too,
  as soon as `create_graph=True`.
- The transforms of `torch.func` and forward mode compute all attention by the definition, in
  (b h n n) memory.
- Whoever asks for none of these pays nothing for them, but for some microseconds in each plain
  attention with gradients.

## What does not work, and what to do instead

- Gradients of gradients of a model under `torch.compile`: PyTorch refuses them ("does not currently
  support double backward"). Differentiate the model that is not compiled.
- `model.attn_qk_clip_(intermediates)` after `return_intermediates=True` alone: fused attention
  holds no logits, and the error says so. Call the model with `return_attn=True` beside it.
"""

if __name__ == "__main__":
    PAGE.write_text(page())
