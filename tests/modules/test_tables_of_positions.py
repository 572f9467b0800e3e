"""CoPE's and relative positions' tables: scaled, shared by layers, as long as the block."""

import copy
import math

import pytest
import torch

import xcope
from xcope.config import Config
from xcope.config.build import make_model_for, make_task
from xcope.errors import FlagError
from xcope.integrations.transformers.export import exported_model
from xcope.integrations.transformers.model import XCopeForCausalLM
from xcope.modules import seam
from xcope.positions.plan import fitted

SIZE = {"dim": 32, "depth": 3, "heads": 4, "attn_dim_head": 16, "verbose": False}


def model_of(where, max_seq_len=24, **flags):
    torch.manual_seed(0)
    model = xcope.TransformerWrapper(
        num_tokens=20,
        max_seq_len=max_seq_len,
        attn_layers=xcope.Decoder(**SIZE, position=where, **flags),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("pos_emb"):
                parameter.normal_()
    return model.eval()


def tables(model):
    return [p for name, p in model.state_dict().items() if name.endswith("pos_emb")]


TOKENS = torch.arange(40).view(2, 20) % 20


@pytest.mark.parametrize("options", [{}, {"soft_onehot": True}, {"per_head": True}], ids=str)
def test_a_scaled_table_is_a_table_divided_by_the_root_of_the_width(options):
    plain, scaled = (
        model_of({"name": "cope", "max_pos": 5, "scaled": on, **options}) for on in (False, True)
    )
    factor = model_of({"name": "cope", "max_pos": 5, "table_scale": 16**-0.5, **options})
    for model in (scaled, factor):
        model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for table in tables(plain):
            table.div_(math.sqrt(16))
    expected = plain(TOKENS)
    for model in (scaled, factor):
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)
        with seam.logits_kept(model):
            torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)


def test_attention_of_a_scaled_table_is_the_authors_own():
    """(q·k + q·e[p]) / √d, number by number."""
    module = model_of({"name": "cope", "max_pos": 4, "scaled": True}).attn_layers
    attend = seam.self_attentions(module)[0].attend.cope.double()
    q, k, v = (torch.randn(1, 4, 9, 16).double() for _ in range(3))
    inputs = xcope.positions.AttendInputs(scale=0.25)
    out, e = attend.attend(q, k, v, inputs), attend.pos_emb
    for head in range(4):
        for i in range(9):
            logits, count = {}, 0.0
            for j in range(i, -1, -1):
                qk = q[0, head, i] @ k[0, head, j]
                count = min(count + float(torch.sigmoid(qk / 4)), 3.0)
                f = math.floor(count)
                low, high = (q[0, head, i] @ e[min(m, 3)] for m in (f, f + 1))
                logits[j] = (qk + low + (count - f) * (high - low)) / 4
            order = sorted(logits)
            weights = torch.stack([logits[j] for j in order]).softmax(0)
            torch.testing.assert_close(out[0, head, i], weights @ v[0, head, : i + 1])


@pytest.mark.parametrize("name", ["cope", "relative"])
def test_one_table_for_all_layers(name):
    shared = model_of({"name": name, "max_pos": 5, "shared": True})
    apart = model_of({"name": name, "max_pos": 5})
    assert len([n for n, _ in shared.named_parameters() if n.endswith("pos_emb")]) == 1
    assert list(shared.state_dict()) == list(apart.state_dict())  # x-transformers' names
    apart.load_state_dict(shared.state_dict())
    torch.testing.assert_close(shared(TOKENS), apart(TOKENS))
    for model in (shared, apart):
        model(TOKENS).square().mean().backward()
    of_all = shared.attn_layers.layers[0][1].attend.cope.pos_emb.grad
    each = [layer[1].attend.cope.pos_emb.grad for layer in apart.attn_layers.layers[::2]]
    torch.testing.assert_close(of_all, sum(each))
    again = copy.deepcopy(shared)
    assert len({id(p) for n, p in again.named_parameters() if n.endswith("pos_emb")}) == 1


def test_several_tables_do_not_become_one_unsaid():
    apart, shared = (model_of({"name": "cope", "max_pos": 5, "shared": on}) for on in (False, True))
    with pytest.raises(RuntimeError, match=r"several tables.*shares one"):
        shared.load_state_dict(apart.state_dict())


def test_a_shared_table_stays_one_where_a_model_gets_its_memory_later():
    with torch.device("meta"):
        model = xcope.TransformerWrapper(
            num_tokens=20,
            max_seq_len=24,
            attn_layers=xcope.Decoder(**SIZE, position={"name": "cope", "shared": True}),
        )
    model.to_empty(device="cpu")
    its = [layer[1].attend.cope.pos_emb for layer in model.attn_layers.layers[::2]]
    assert its[0] is its[1]


def test_a_shared_table_goes_to_hugging_face_and_back(tmp_path):
    position = {"name": "cope", "max_pos": "block", "shared": True}
    sizes = {"dim": 32, "depth": 2, "heads": 2, "position": position}
    config = Config.model_validate({"model": sizes, "task": {"name": "copy"}})
    model = make_model_for(config.model, make_task(config.task)).eval()
    with torch.no_grad():
        tables(model)[0].normal_()
    ids = torch.arange(9)[None] % model.num_tokens
    exported_model(config, model).save_pretrained(tmp_path)
    back = XCopeForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(back(ids).logits, model(ids))
    its = [layer[1].attend.cope.pos_emb for layer in back.model.attn_layers.layers[::2]]
    assert its[0] is its[1]


def test_layers_of_unlike_schemes_share_a_table_with_their_like():
    where = {"layers": [{"name": "cope", "shared": True}, "relative"]}
    model = model_of(where)
    first, other, third = (layer[1].attend.cope for layer in model.attn_layers.layers[::2])
    assert first is third
    assert type(other).__name__ == "Relative"
    text = xcope.AutoregressiveWrapper(model)
    cached, full = (
        text.generate(TOKENS[:, :5], 12, temperature=0.0, cache_kv=cache) for cache in (True, False)
    )
    assert torch.equal(cached, full)


def test_a_table_as_long_as_the_block():
    model = model_of([{"layers": [{"name": "cope", "max_pos": "block"},
                                  {"name": "relative", "max_pos": "block"}]}])  # fmt: skip
    assert [len(table) for table in tables(model)] == [25, 24, 25]
    assert model.plan.label() == "layers(cope(max_pos=25), relative(max_pos=24))"
    same = model_of(
        {"layers": [{"name": "cope", "max_pos": 25}, {"name": "relative", "max_pos": 24}]}
    )
    assert model.state_dict().keys() == same.state_dict().keys()
    torch.testing.assert_close(model(TOKENS), same(TOKENS))
    where = ["absolute", {"layers": [{"name": "cope", "max_pos": "block"}, "relative"]}]
    known = ["absolute", {"layers": [{"name": "cope", "max_pos": 25}, "relative"]}]
    assert fitted(where, 24) == known


def test_a_decoder_that_nobody_told_how_long_rows_are_says_so():
    decoder = xcope.Decoder(**SIZE, position="cope", cope_max_pos="block")
    with pytest.raises(FlagError, match=r"cope_max_pos='block'.*TransformerWrapper") as told:
        decoder(torch.randn(1, 5, 32))
    assert told.value.flag == "cope_max_pos"
    with pytest.raises(FlagError, match=r"cope_max_pos='blok'.*'block'"):
        xcope.Decoder(**SIZE, position="cope", cope_max_pos="blok")


@pytest.mark.parametrize(
    "position",
    [
        {"position": {"name": "cope", "max_pos": "block"}},
        {"position": "cope", "cope_max_pos": "block"},
    ],
    ids=str,
)
def test_a_config_knows_how_long_rows_are_in_training(position):
    sizes = {"dim": 32, "depth": 1, "heads": 2}
    config = Config.model_validate({"model": {**sizes, **position}, "task": {"name": "copy"}})
    task = make_task(config.task)
    assert task.seq_len("train") < task.max_seq_len
    model = make_model_for(config.model, task)
    assert len(tables(model)[0]) == task.seq_len("train") + 1
    exported = exported_model(config, model)
    ids = torch.arange(9)[None] % model.num_tokens
    torch.testing.assert_close(exported(ids).logits, model.eval()(ids))


def test_gates_of_the_logits_without_their_bias():
    """As the authors' cope+rel: equal to gates' keys that are the keys."""
    where = ["alibi", {"name": "cope", "max_pos": 5, "biased_gates": False}]
    model, biased = model_of(where), model_of(["alibi", {"name": "cope", "max_pos": 5}])
    own = model_of(["alibi", {"name": "cope", "max_pos": 5, "sep_keys": True}])
    weights = model.state_dict()
    for layer in range(0, 6, 2):
        key = f"attn_layers.layers.{layer}.1.to_k"
        weights[f"{key}.gate_weight"] = weights[f"{key}.weight"]
    own.load_state_dict(weights)
    biased.load_state_dict(model.state_dict())
    out = model(TOKENS)
    torch.testing.assert_close(out, own(TOKENS), atol=1e-5, rtol=1e-5)
    assert (out - biased(TOKENS)).abs().max() > 1e-2
    with seam.logits_kept(model):
        torch.testing.assert_close(model(TOKENS), out, atol=1e-5, rtol=1e-5)
    alone = model_of({"name": "cope", "max_pos": 5, "biased_gates": False})
    plain = model_of({"name": "cope", "max_pos": 5})
    torch.testing.assert_close(alone(TOKENS), plain(TOKENS))
