"""Windows, sinks and length-scaled logits in decoders: beside every scheme, in layers and heads."""

import pytest
import torch
from schemes import KINDS, position

import xcope
from xcope.errors import FlagError
from xcope.modules import cache_of, kept_by, seam
from xcope.positions import clash, parse

BESIDE = [
    {"name": "window", "size": 5, "sinks": 2},
    {"name": "sink", "init": 0.5},
    {"name": "length_scale", "init": 0.4},
]
LENGTHS = (4, 11, 7)


def together(name):
    """The scheme and all three, as far as they go together; the slots of options change places."""
    chosen = [position(name)] if parse(position(name)).schemes else []
    taken = parse(position(name)).schemes
    for one in BESIDE:
        (scheme,) = parse(one).schemes
        if not any(clash(scheme, other) for other in taken):
            chosen.append(one)
    return chosen


def model_of(where, wrapper=None, **flags):
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16, "verbose": False}
    layers = xcope.Decoder(**sizes | flags, position=where)
    model = xcope.TransformerWrapper(
        num_tokens=20, max_seq_len=64, attn_layers=layers, **wrapper or {}
    )
    with torch.no_grad():  # what starts at zero would go unseen
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def tokens(n=24, b=2):
    return torch.randint(20, (b, n), generator=torch.Generator().manual_seed(n))


def close(ours, truth):
    torch.testing.assert_close(ours, truth, atol=1e-4, rtol=1e-4)


def one_by_one(model, x, first, **keywords):
    """The logits of the tokens after ``first``, one by one beside a cache."""
    _, cache = model(x[:, :first], return_intermediates=True, **keywords)
    found = []
    for n in range(first, x.shape[1]):
        new, cache = model(x[:, n : n + 1], cache=cache, return_intermediates=True, **keywords)
        found.append(new)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", KINDS)
def test_all_three_beside_a_scheme_with_cache_padding_documents_and_logits_held(name):
    model = model_of(together(name))
    x = tokens()
    whole = model(x)
    assert not torch.allclose(whole, model_of(position(name))(x))
    with seam.logits_kept(model):
        close(model(x), whole)
    cached = not any(map(seam.needs_all_tokens, seam.self_attentions(model.attn_layers)))
    with torch.no_grad():
        if cached:
            close(one_by_one(model, x, 18), whole[:, 18:])
            for several in (3, 11):  # queries at once, few and more
                _, cache = model(x[:, :-several], return_intermediates=True)
                close(model(x[:, -several:], cache=cache, cache_age=several), whole[:, -several:])
        texts = [tokens(length, 1) for length in LENGTHS]
        padded = torch.cat(
            [torch.nn.functional.pad(t, (max(LENGTHS) - t.shape[1], 0)) for t in texts]
        )
        start = torch.tensor([max(LENGTHS) - length for length in LENGTHS])
        padded = model(padded, seq_start_pos=start)
        alone = [model(text)[0] for text in texts]
        for row, truth in zip(padded, alone, strict=True):
            close(row[-len(truth) :], truth)
        if cached:
            edges = torch.tensor([0, *LENGTHS]).cumsum(0)
            packed = model(torch.cat(texts, dim=1), cu_seqlens=edges)
            close(packed[0], torch.cat(alone))


SPLITS = [
    {"layers": [["rotary", {"name": "window", "size": 4, "sinks": 2}], "none"]},
    {"layers": [["cope", {"name": "window", "size": 4}], ["cope", "sink"]]},
    {
        "heads": [
            ["alibi", {"name": "window", "size": 4}],
            ["rotary", "sink"],
            "length_scale",
            "none",
        ]
    },
    {"heads": [{"name": "window", "size": 3}, {"name": "window", "size": 9, "chunked": True}]},
    [{"heads": ["cope", "forgetting"]}, {"name": "sink", "learned": False}, "window"],
]


@pytest.mark.parametrize("where", SPLITS, ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_splits_of_layers_and_heads_with_grouped_keys(where, kv_heads):
    model, x = model_of(where, attn_kv_heads=kv_heads), tokens()
    outs = []
    for kept in (False, True):
        model.zero_grad()
        if kept:
            with seam.logits_kept(model):
                logits = model(x)
        else:
            logits = model(x)
        logits.square().mean().backward()
        outs.append((logits, {n: p.grad for n, p in model.named_parameters()}))
    close(outs[0][0], outs[1][0])
    for parameter, grad in outs[0][1].items():
        close(grad, outs[1][1][parameter])
    with torch.no_grad():
        close(one_by_one(model, x, 20), model(x)[:, 20:])


@pytest.mark.parametrize("where", ["cope", "alibi", "rotary", "forgetting", "none"])
def test_beside_a_cache_the_keys_before_the_window_are_not_read(where):
    """They are NaN there, in all layers."""
    model, x = model_of([where, BESIDE[0]] if where != "none" else BESIDE[0]), tokens(30)
    with torch.no_grad():
        truth = model(x)[:, -1:]
        _, cache = model(x[:, :-1], return_intermediates=True)
        kept = [
            tuple(t.clone() if n > 1 else broken(t) for n, t in enumerate(tensors))
            for tensors in kept_by(cache)
        ]
        close(model(x[:, -1:], cache=cache_of(kept, 29)), truth)


def broken(t):
    t = t.clone()
    t[:, :, 2:25] = torch.nan
    return t


def test_layers_share_the_window_of_a_call():
    model, made = model_of(["rotary", BESIDE[0]]), []
    limits = model.attn_layers.layers[0][1].attend.parts[0].mask
    limits.register_forward_hook(lambda *_: made.append(1))
    model(tokens())
    assert len(made) == 1


def test_x_transformers_flags_take_the_fast_path():
    model = model_of(None, attn_max_attend_past=6, attn_head_learned_sink=True, attn_flash=True)
    assert seam.holds_logits(model.attn_layers) == []
    _, cache = model(tokens(), return_intermediates=True)
    first = cache.attn_intermediates[0]
    assert isinstance(first, seam.FusedIntermediates)
    assert model.schemes[0].name == "absolute", "no flag of these says where tokens stand"


def test_learned_memories_and_recurrent_ones_are_as_with_logits_held():
    model = model_of(["cope", *BESIDE], {"max_mem_len": 6}, attn_num_mem_kv=2)
    memories = [torch.randn(2, 6, 32) for _ in range(2)]
    with torch.no_grad():
        fused = model(tokens(), mems=memories)
        with seam.logits_kept(model):
            close(fused, model(tokens(), mems=memories))


def test_a_row_masked_on_the_left_has_its_own_first_keys():
    """Without positions, where the padding stands is all that could differ."""
    model = model_of(BESIDE[0])
    x, pad = tokens(20, 1), 7
    mask = torch.ones(1, 20 + pad, dtype=torch.bool)
    mask[:, :pad] = False
    with torch.no_grad():
        padded = model(torch.cat((tokens(pad, 1), x), dim=1), mask=mask)
        close(padded[:, pad:], model(x))


def test_places_that_are_given_do_not_move_the_window():
    model = model_of(["alibi", BESIDE[0]])
    x = tokens(16)
    with torch.no_grad():
        close(model(x, pos=torch.arange(16)), model(x))
        moved = model(x, pos=torch.arange(16) * 3)
        assert not torch.allclose(moved, model(x), atol=1e-3)


def test_one_graph_for_all_three():
    torch._dynamo.reset()
    model, x = model_of(["alibi", *BESIDE], depth=1), tokens(b=1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    edges = torch.tensor([0, 9, 24])
    close(compiled(x, cu_seqlens=edges), model(x, cu_seqlens=edges))
    with torch.no_grad():
        close(compiled(x[:, :3]), model(x[:, :3]))


def test_a_scheme_whose_attention_has_no_place_for_a_sink_refuses_it(monkeypatch):
    from xcope.positions.cope import CoPE  # noqa: PLC0415

    monkeypatch.setattr(CoPE, "takes_sink", False)
    with pytest.raises(FlagError, match="'sink' does not go together with 'cope'"):
        model_of(["cope", "sink"])
    monkeypatch.setattr(CoPE, "takes_window", False)
    written = []
    attend = CoPE.attend

    def noted(self, q, k, v, inputs):
        written.append((inputs.window, inputs.mask))
        return attend(self, q, k, v, inputs)

    truth = model_of(["cope", BESIDE[0]])
    x = tokens()
    expected = truth(x)
    monkeypatch.setattr(CoPE, "attend", noted)
    close(truth(x), expected)
    assert all(window is None and mask is not None for window, mask in written)


def test_cross_attention_keeps_x_transformers_window_and_sinks():
    flags = {"cross_attend": True, "attn_max_attend_past": 3, "attn_head_learned_sink": True}
    layers = xcope.Decoder(dim=32, depth=1, heads=4, attn_dim_head=16, position="rotary", **flags)
    (cross,) = seam.cross_attentions(layers)
    assert cross.max_attend_past == 3
    assert cross.attend.head_attn_sink.shape == (4,)
    x, context = torch.randn(1, 8, 32), torch.randn(1, 8, 32)
    places = torch.arange(8)
    before = layers(x, context=context, context_pos=places)
    with torch.no_grad():
        cross.attend.head_attn_sink += 3
    assert not torch.allclose(layers(x, context=context, context_pos=places), before)


def test_labels_and_sweeps_read_them_as_any_scheme():
    plan = parse({"layers": [["rotary", {"name": "window", "size": 256, "sinks": 4}], "none"]})
    assert plan.label() == "layers(rotary+window(sinks=4), none)"
    layers = xcope.Decoder(dim=32, depth=1, position=["cope", "window"], window_size=100)
    assert layers.plan.label() == "cope+window(size=100)"
