"""What `trace` returns is what the model computes, by whatever path it computes it otherwise."""

import pytest
import torch
import torch.nn.functional as F
from schemes import NAMES, position

import xcope
from xcope.errors import FlagError
from xcope.inspect import trace
from xcope.modules import seam
from xcope.ops.cope import position_bias, positions
from xcope.ops.cope.reference import interpolated, soft_one_hot


def attends(model):
    return [attention.attend for attention in seam.self_attentions(model.attn_layers)]


def plain_run(model, ids, **given):
    """q, k, v, mask and output of each layer's attention, without `trace`."""
    seen = []

    def note(_attend, args, kwargs, output):
        seen.append((*args[:3], kwargs["mask"], output[0]))

    hooks = [attend.register_forward_hook(note, with_kwargs=True) for attend in attends(model)]
    with torch.no_grad():
        model(ids, **given)
    for hook in hooks:
        hook.remove()
    return seen


def check_equations(model, ids, **given):
    """attention = softmax(logits + bias), and attention · v is what the model computes."""
    traced = trace(model, ids, **given)
    run = plain_run(model, ids, **given)
    assert len(traced.layers) == len(run)
    for attend, layer, (_, _, v, _, out) in zip(attends(model), traced.layers, run, strict=True):
        logits = layer.logits if layer.bias is None else layer.logits + layer.bias
        logits = logits.masked_fill(~layer.seen, -torch.inf)
        if attend.head_attn_sink is not None:  # one more logit, whose share nobody gets
            sink = attend.head_attn_sink[:, None, None].expand(*logits.shape[:3], 1)
            expected = torch.cat((sink, logits), dim=-1).softmax(-1)[..., 1:]
        else:
            expected = logits.softmax(-1).nan_to_num(0.0)
        torch.testing.assert_close(layer.attention, expected, atol=1e-5, rtol=1e-4)
        values = v.repeat(1, out.shape[1] // v.shape[1], 1, 1)
        values = F.pad(values, (0, 0, layer.attention.shape[-1] - v.shape[-2], 0))
        rows = layer.seen.any(-1)
        torch.testing.assert_close(
            (layer.attention @ values)[rows], out[rows], atol=1e-4, rtol=1e-3
        )
    return traced


@pytest.mark.parametrize("name", NAMES)
def test_attention_times_values_is_the_layer_s_output(make, ids, name):
    traced = check_equations(make(position(name)), ids)
    has_gates = traced.layers[0].gates is not None
    gated = ("contextual_rotary", "decay", "stick_breaking")
    assert has_gates == ("cope" in name or name in gated)
    assert set(traced.layers[0].named) >= {"logits", "seen", "attention"}


FLAGS = [
    {"attn_kv_heads": 2},
    {"attn_one_kv_head": True},
    {"attn_num_mem_kv": 2},
    {"attn_add_zero_kv": True},
    {"wrapper": {"num_memory_tokens": 3}},
    {"attn_qk_norm": True},
    {"residual_attn": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", ["cope_alibi", "rotary"])
def test_with_flags_of_x_transformers(make, ids, name, flags):
    traced = check_equations(make(name, **flags), ids)
    keys = traced.layers[0].logits.shape[-1]
    assert len(traced.key_labels()) == keys
    assert [label.startswith("mem") for label in traced.key_labels()] == [
        key < keys - 24 for key in range(keys)
    ]


def test_flash_attention_is_seen_through(make, ids):
    model = make("rotary", attn_flash=True)
    check_equations(model, ids)
    assert all(attend.flash for attend in attends(model))


VARIANTS = {
    "plain": {},
    "per_head": {"per_head": True},
    "sep_keys": {"sep_keys": True},
    "val_gates": {"val_gates": True},
    "talking_heads": {"talking_heads": True},
    "soft_onehot": {"soft_onehot": True, "soft_onehot_temp": 0.5},
    "all": {"per_head": True, "sep_keys": True, "talking_heads": True, "soft_onehot": True},
}


@pytest.mark.parametrize("name", ["cope", "cope_rotary", "cope_alibi"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_table_read_at_the_positions_is_the_bias(make, ids, name, variant):
    model = make({"name": name, "max_pos": 6, **variant})
    traced = check_equations(model, ids)
    run = plain_run(model, ids)
    places = torch.arange(24)
    for attend, layer, (q, *_) in zip(attends(model), traced.layers, run, strict=True):
        (part,) = attend.parts
        turned = q if part.rotation is None else part.rotation.rotate(q, q, places, places)[0]
        table = turned @ part.attend.pos_emb.mT
        if "soft_onehot" in variant:
            read = soft_one_hot(table, layer.positions, part.attend.soft_onehot_temp)
        else:
            read = interpolated(table, layer.positions)
        if part.bias is not None:
            read = read + part.bias.dense(places, places)
        seen = layer.seen
        torch.testing.assert_close(layer.positions, positions(layer.gates, 6))
        torch.testing.assert_close(layer.bias[seen], read[seen], atol=1e-3, rtol=1e-3)


DEFINED = [
    (name, variant) for name in ("cope", "cope_rotary", "cope_alibi") for variant in VARIANTS
]


@pytest.mark.parametrize(("name", "variant"), DEFINED, ids=str)
def test_gates_and_positions_are_those_of_the_definition(make, ids, name, variant):
    model = make({"name": name, "max_pos": 6, **VARIANTS[variant]})
    mask = torch.arange(24) >= torch.tensor([[0], [3]])
    traced = trace(model, ids, mask)
    run = plain_run(model, ids, mask=mask)
    for attend, layer, (q, k, v, seen, _) in zip(attends(model), traced.layers, run, strict=True):
        (part,) = attend.parts
        seen = seen.expand(-1, -1, 24, -1).tril()  # noqa: PLW2901
        logits, gates, bias = defined(part, q, k, v, seen, VARIANTS[variant])
        near = {"atol": 1e-3, "rtol": 1e-3}
        torch.testing.assert_close(layer.logits, logits, **near)
        torch.testing.assert_close(layer.gates, gates, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.positions, positions(gates, 6), **near)
        torch.testing.assert_close(layer.bias.where(seen, 0), bias.where(seen, 0), **near)
        assert torch.equal(layer.saturated, (layer.positions >= 5) & seen)
        assert layer.saturated.any()
        assert not layer.saturated.all()


def defined(part, q, k, v, seen, variant):
    """Logits, gates and bias of one layer's CoPE, from the formulas."""
    places = torch.arange(q.shape[-2])
    scale = q.shape[-1] ** -0.5
    gate_k = v if part.attend.val_gates else None
    if part.attend.sep_keys:
        k, gate_k = k.chunk(2, dim=1)
    if part.rotation is not None:
        if gate_k is not None:
            _, gate_k = part.rotation.rotate(q, gate_k, places, places)
        q, k = part.rotation.rotate(q, k, places, places)
    logits = scale * (q @ k.mT)
    added = torch.zeros(()) if part.bias is None else part.bias.dense(places, places)
    gate_logits = logits + added if gate_k is None else scale * (q @ gate_k.mT)
    if part.attend.talking_heads is not None:
        mix = part.attend.talking_heads.weight[:, :, 0, 0]
        gate_logits = torch.einsum("gh,bhij->bgij", mix, gate_logits)
    options = {name: variant[name] for name in variant if name.startswith("soft")}
    bias = position_bias(q, gate_logits, part.attend.pos_emb, seen, **options)
    return logits, gate_logits.sigmoid() * seen, bias + added


def test_layers_and_groups_of_heads_with_schemes_of_their_own(make, ids):
    mixed = {
        "layers": [
            {"name": "cope", "max_pos": 8},
            {"heads": ["rotary", {"name": "cope", "max_pos": 5}, "rotary", "alibi"]},
            "none",
            {"heads": ["forgetting", {"name": "cope", "sep_keys": True}]},
        ]
    }
    traced = check_equations(make(mixed, depth=4), ids)
    assert [layer.schemes for layer in traced.layers] == [
        ("cope(max_pos=8)",) * 4,
        ("rotary", "rotary", "cope(max_pos=5)", "alibi"),  # equal groups become one
        ("none",) * 4,
        ("forgetting", "forgetting", "cope(sep_keys=True)", "cope(sep_keys=True)"),
    ]
    second = traced.layers[1]
    assert second.max_pos == (None, None, 5, None)
    assert second.gates.isnan().all(-1).all(-1).tolist() == [[True, True, False, True]] * 2
    assert not second.saturated[:, [0, 1, 3]].any()
    assert second.saturated[:, 2].any()
    assert second.bias[:, :2].abs().max() == 0
    assert second.bias[:, 3].min() < 0
    none = traced.layers[2]
    assert (none.bias, none.gates, none.positions, none.saturated) == (None, None, None, None)
    assert set(none.named) == {"logits", "seen", "attention"}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["cope", "rotary", "forgetting"])
def test_padding_is_not_seen_and_changes_nothing(make, ids, name, side):
    model, pad = make(name), torch.zeros(2, 4, dtype=torch.long)
    padded = torch.cat((pad, ids) if side == "left" else (ids, pad), dim=1)
    text = slice(4, None) if side == "left" else slice(0, 24)
    mask = torch.zeros(2, 28, dtype=torch.bool)
    mask[:, text] = True
    alone, together = trace(model, ids), trace(model, padded, mask)
    for one, other in zip(alone.layers, together.layers, strict=True):
        assert not other.seen[..., ~mask[0]].any()
        assert other.attention[..., ~mask[0]].abs().max() == 0
        for tensor in ("attention", "gates", "positions"):
            mine, its = getattr(one, tensor), getattr(other, tensor)
            if mine is not None:
                torch.testing.assert_close(its[..., text, text], mine, atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was(make, ids):
    model = make("cope", attn_dropout=0.5)
    model.train()
    model.attn_layers.layers[0][1].eval()
    before = [module.training for module in model.modules()]
    first, second = trace(model, ids), trace(xcope.AutoregressiveWrapper(model), ids[0])
    assert [module.training for module in model.modules()] == before
    for attend in attends(model):
        assert not attend.keep_logits
        assert not attend._forward_hooks
        assert not attend.cope._forward_hooks
    assert not first.layers[0].attention.requires_grad
    # dropout is off: both runs are the same
    torch.testing.assert_close(first.layers[1].gates[:1], second.layers[1].gates)


def test_labels(make, ids):
    model = make("cope")
    assert trace(model, ids[0]).labels == (tuple(map(str, ids[0].tolist())),)
    assert trace(model, ids[0, :3], labels=["a", "b", " "]).labels == (("a", "b", " "),)
    rows = [["a", "b"], ["c", "d"]]
    assert trace(model, ids[:, :2], labels=rows).labels == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ids": torch.zeros(0, dtype=torch.long)}, "ids must be"),
        ({"ids": torch.zeros(3)}, "whole numbers"),
        ({"ids": torch.tensor([1, 20])}, "0 … 19, but go from 1 to 20"),
        ({"ids": torch.tensor([-1, 3])}, "from -1 to 3"),
        ({"mask": torch.ones(2, 24)}, "mask must be bool"),
        ({"mask": torch.ones(24, dtype=torch.bool)}, "mask must be bool"),
        ({"labels": ["a", "b"]}, "labels must be as many"),
        ({"model": torch.nn.Linear(2, 2)}, "not a Linear"),
        ({"model": "strewn"}, "memory_tokens_interspersed_every=12"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_mistakes_are_told(make, ids, given, said):
    model = make("cope")
    if given.get("model") == "strewn":
        strewn = {"num_memory_tokens": 1, "memory_tokens_interspersed_every": 12}
        given = {"model": make("rotary", wrapper=strewn)}
    with pytest.raises(FlagError, match=said):
        trace(**({"model": model, "ids": ids} | given))


def test_absolute_positions_end(make):
    with pytest.raises(FlagError, match="max_seq_len=64"):
        trace(make("absolute"), torch.zeros(65, dtype=torch.long))
