"""Places drawn at random: whole and real ones, in training and in evaluation, for each layer."""

from itertools import pairwise

import pytest
import torch
from schemes import position

import xcope
from xcope.errors import FlagError
from xcope.ops.biased.reference import dense as written_out
from xcope.positions import Draw, Geometry, parse, scheme

REAL = [
    "alibi",
    "bam",
    "dynamic",
    "fire",
    "kerple",
    "pope",
    "rotary",
    "sandwich",
    "sinusoidal",
    "xpos",
]
CURVES = ["bam", "dynamic", "fire", "kerple", "sandwich"]


def model_of(where, **flags):
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "attn_dim_head": 16} | flags
    model = xcope.TransformerWrapper(
        num_tokens=40,
        max_seq_len=64,
        attn_layers=xcope.Decoder(position=where, **sizes),
    )
    for parameter in model.position_parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_real_places_are_distinct_and_fill_the_range_evenly():
    drawn = torch.stack([Draw(50, None).places(9, torch.device("cpu")) for _ in range(2000)])
    assert drawn.dtype == torch.float32
    assert (drawn.diff() > 0).all()
    # order statistics of nine uniform numbers
    expected = 50 * torch.arange(1, 10) / 10
    torch.testing.assert_close(drawn.mean(0), expected, atol=0.5, rtol=0)
    assert Draw(3, None).places(9, torch.device("cpu")).max() < 3


def test_the_longest_document_has_real_places_of_the_whole_range():
    edges = torch.tensor([0, 2, 6, 7])
    drawn = torch.stack([Draw(50, None).places_of_documents(edges, 7)[:4] for _ in range(2000)])
    torch.testing.assert_close(drawn.mean(0), 50 * torch.arange(1, 5) / 5, atol=0.8, rtol=0)


@pytest.mark.parametrize("name", REAL)
def test_real_places_in_training_and_the_usual_ones_in_evaluation(name):
    plain = model_of(position(name))
    real = model_of(position(name, random_max=20, random_float=True))
    tokens = torch.randint(40, (2, 30))  # more tokens than whole places
    torch.testing.assert_close(real.eval()(tokens), plain.eval()(tokens))
    assert not torch.equal(real.train()(tokens), real(tokens))


@pytest.mark.parametrize("name", REAL)
def test_whole_numbers_among_real_places_give_what_whole_places_give(name, monkeypatch):
    whole = model_of(position(name, random_max=48)).train()
    real = model_of(position(name, random_max=48, random_float=True)).train()
    tokens = torch.randint(40, (2, 30))
    drawn = torch.randperm(48)[:30].sort().values
    monkeypatch.setattr(Draw, "places", lambda draw, *_: drawn if draw.steps == 1 else 1.0 * drawn)
    outs, grads = [], []
    for model in (whole, real):
        outs.append(model(tokens))
        grads.append(torch.autograd.grad(outs[-1].square().sum(), [*model.parameters()]))
    torch.testing.assert_close(outs[1], outs[0], atol=2e-5, rtol=1e-4)
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["alibi", *CURVES])
def test_vectors_agree_with_the_formula_at_real_places(name):
    (one,) = parse(position(name, random_max=30, random_float=True)).schemes
    assert one.draw.steps == (None if name == "alibi" else 16)
    module = one.build(Geometry(dim=32, heads=3, dim_head=16)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    pos = one.draw.places(25, torch.device("cpu"))
    assert (pos != pos.round()).any()
    q_pos = pos[-9:]
    dense, tiled = module.dense(q_pos, pos), written_out(module.terms(q_pos, pos, 30))
    seen = q_pos[:, None] >= pos
    torch.testing.assert_close(tiled[:, seen], dense[:, seen].to(tiled.dtype))
    alone = [module.dense(q_pos[i : i + 1], pos[j : j + 1]) for i, j in ((0, 3), (8, 24), (4, 17))]
    for value, (i, j) in zip(alone, ((0, 3), (8, 24), (4, 17)), strict=True):
        torch.testing.assert_close(value[:, 0, 0], dense[:, i, j])


def test_a_bias_at_real_places_is_its_formula_there():
    kerple = scheme("kerple", {"random_max": 9, "random_float": True})
    module = kerple.build(Geometry(dim=8, heads=2, dim_head=8)).double()
    q_pos, k_pos = torch.tensor([7.5]), torch.tensor([0.0, 3.0625, 7.4375])
    expected = -module.r1[:, None] * torch.log1p(module.r2[:, None] * (q_pos - k_pos).double())
    torch.testing.assert_close(module.dense(q_pos, k_pos)[:, 0], expected)
    torch.testing.assert_close(written_out(module.terms(q_pos, k_pos, 9))[:, 0], expected)


@pytest.mark.parametrize("name", CURVES)
def test_real_places_know_documents_padding_grouped_keys_and_groups_of_heads(name, monkeypatch):
    where = {"heads": [position(name, random_max=40, random_float=True), "none"]}
    tokens = torch.randint(40, (1, 20))
    model = model_of(where, heads=4, attn_kv_heads=2).train()
    edges = torch.tensor([0, 6, 14, 20])
    torch.manual_seed(1)
    packed = model(tokens, cu_seqlens=edges)
    torch.manual_seed(1)
    places = Draw(40, 16).places_of_documents(edges, 20)
    monkeypatch.setattr(Draw, "places", lambda draw, n, device: places[:n])
    for first, stop in pairwise(edges.tolist()):
        alone = model(tokens[:, first:stop])
        torch.testing.assert_close(packed[:, first:stop], alone, atol=1e-5, rtol=1e-4)
    padded = model(tokens, seq_start_pos=torch.tensor([7]))
    torch.testing.assert_close(padded[:, 7:], model(tokens[:, 7:]), atol=1e-5, rtol=1e-4)


NINE = {"random_max": 9, "random_float": True}


@pytest.mark.parametrize(
    ("where", "flag", "message"),
    [
        ({"name": "t5"} | NINE, "t5_random_float", "whole distances"),
        ({"name": "absolute"} | NINE, "absolute_random_float", "table"),
        ({"name": "rotary", "random_float": True}, "rotary_random_float", "with rotary_random_max"),
        ({"name": "alibi", "random_at_test": True}, "alibi_random_at_test", "alibi_random_max"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_by_name(where, flag, message):
    with pytest.raises(FlagError, match=message) as caught:
        model_of(where)
    assert caught.value.flag == flag


@pytest.mark.parametrize("name", ["alibi", "kerple"])
def test_a_bias_of_real_places_stands_beside_cope(name):
    model = model_of(["cope", {"name": name, "random_max": 9, "random_float": True}]).train()
    model(torch.randint(40, (2, 12))).sum().backward()


@pytest.mark.parametrize("real", [False, True])
def test_at_test_each_layer_of_each_call_draws_its_own(real, monkeypatch):
    where = {"name": "rotary", "random_max": 30, "random_at_test": True, "random_float": real}
    model, calls = model_of(where).eval(), []
    draw = Draw.places

    def noted(self, n, device):
        calls.append(draw(self, n, device))
        return calls[-1]

    monkeypatch.setattr(Draw, "places", noted)
    tokens = torch.randint(40, (2, 12))
    assert not torch.equal(model(tokens), model(tokens))
    assert len(calls) == 4
    assert not torch.equal(calls[0], calls[1])
    at_train = model_of({"name": "rotary", "random_max": 30}).train()
    calls.clear()
    at_train(tokens)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["rotary", "kerple", "sinusoidal", "absolute"])
def test_at_test_no_cache_is_kept(name):
    model = model_of({"name": name, "random_max": 40, "random_at_test": True}).eval()
    text = xcope.AutoregressiveWrapper(model)
    prompt = torch.randint(40, (1, 4))
    torch.manual_seed(2)
    cached = text.generate(prompt, 8, temperature=0.0)
    torch.manual_seed(2)
    assert torch.equal(cached, text.generate(prompt, 8, temperature=0.0, cache_kv=False))


def test_given_places_are_never_drawn():
    model = model_of({"name": "rotary", "random_max": 40, "random_at_test": True}).eval()
    tokens, pos = torch.randint(40, (1, 12)), torch.arange(12)
    plain = model_of("rotary").eval()
    torch.testing.assert_close(model(tokens, pos=pos), plain(tokens))
