"""How schemes begin: what the options set, and ``start: authors``."""

import pytest
import torch
from schemes import NAMES
from torch import nn

import xcope
from xcope.config import ConfigError, load_config
from xcope.errors import FlagError
from xcope.modules import plan_of
from xcope.positions import Geometry, parse, scheme, started
from xcope.positions.cope import ContextualPosition
from xcope.positions.rotary import Rotary

WIDE = Geometry(dim=600, heads=16, dim_head=36, max_seq_len=40)


def decoder(**flags):
    return xcope.Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, **flags)


@pytest.mark.parametrize(
    ("options", "std"),
    [
        ({}, 6.0),
        ({"scaled": False}, 1.0),
        ({"init_std": 0.5}, 3.0),
        ({"init_std": "hugging_face", "scaled": False}, 600**-0.5),
        ({"init_std": "xavier", "scaled": False, "num_buckets": 96}, (2 / (96 + 16)) ** 0.5),
    ],
    ids=str,
)
def test_t5s_bias_begins_with_the_standard_deviation_that_is_asked_for(options, std):
    options = {"num_buckets": 96, "max_distance": 500} | options
    module = scheme("t5", options).build(WIDE)
    bias = module.curve(torch.arange(96 // 2))
    assert bias.std().item() == pytest.approx(std, rel=0.12)


def test_t5_begins_as_hugging_faces_does():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        d_model=600, d_kv=36, num_heads=16, num_layers=1, d_ff=8, vocab_size=9,
        relative_attention_num_buckets=96,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).decoder.block[0].layer[0]
    weight = theirs.SelfAttention.relative_attention_bias.weight
    chosen = scheme("t5", {"num_buckets": 96, "init_std": "hugging_face", "scaled": False})
    ours = chosen.build(WIDE).relative_attention_bias.weight
    assert ours.shape == weight.shape
    assert ours.std().item() == pytest.approx(weight.std().item(), rel=0.1)


def test_an_unknown_start_of_t5_names_the_nearest():
    with pytest.raises(FlagError, match=r"t5_init_std='xavir'.*did you mean 'xavier'"):
        scheme("t5", {"init_std": "xavir"}).build(WIDE)


def test_forgetting_begins_as_the_authors_do_when_asked():
    (one,) = parse({"name": "forgetting", "start": "authors"}).schemes
    linear = one.build(WIDE).to_forget_gates[0]
    assert (linear.bias == 0).all()
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    (usual,) = parse("forgetting").schemes
    linear = usual.build(WIDE).to_forget_gates[0]
    assert (linear.bias == 5).all()
    assert linear.weight.std().item() == pytest.approx((3 * 600) ** -0.5, rel=0.05)


def test_absolute_positions_begin_as_berts_when_asked():
    (one,) = parse({"name": "absolute", "start": "authors"}).schemes
    added = one.build(WIDE)(torch.zeros(1, 40, dtype=torch.long))
    assert added.std().item() == pytest.approx(0.02, rel=0.05)


def test_dynamic_biases_network_is_crossformers_when_asked():
    (one,) = parse({"name": "dynamic", "start": "authors"}).schemes
    kinds = [type(layer) for block in one.build(WIDE).mlp[:-1] for layer in block]
    assert kinds.count(nn.ReLU) == 3
    assert len(kinds) == 9  # linear, norm, activation


@pytest.mark.parametrize("name", ["kerple", "fire", "bam"])
def test_layers_that_share_a_bias_have_one_set_of_parameters(name):
    own, shared = decoder(position=name), decoder(position={"name": name, "shared": True})
    count = {
        kind: sum(p.numel() for n, p in one.named_parameters() if "rel_pos" in n or "bias" in n)
        for kind, one in (("own", own), ("shared", shared))
    }
    assert count["own"] > 0
    biases = [a.attend.parts[0].bias for a in shared.modules() if hasattr(a, "attend")]
    assert len(biases) == 2
    assert biases[0] is biases[1]
    per_layer = [a.attend.parts[0].bias for a in own.modules() if hasattr(a, "attend")]
    assert per_layer[0] is not per_layer[1]


# -- start: authors ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_authors_set_is_an_option_and_can_be_built(name):
    for part in xcope.schemes()[name]().parts():
        assert part.authors.keys() <= part.options().keys()
        if part.authors:
            scheme(part.name, part.authors)


def test_authors_options_are_set_unless_they_are_given():
    chosen = parse({"name": "t5", "start": "authors"})
    assert chosen == parse({"name": "t5", "init_std": "xavier", "scaled": False})
    assert chosen.label() == "t5(init_std=xavier, scaled=False)"
    written = parse({"name": "t5", "start": "authors", "scaled": True, "num_buckets": 8})
    assert written == parse({"name": "t5", "init_std": "xavier", "num_buckets": 8})
    assert parse({"name": "t5", "start": None}) == parse("t5")


def test_a_flag_beside_it_is_given_too():
    model = decoder(position={"name": "t5", "start": "authors"}, t5_scaled=True)
    assert model.plan == parse({"name": "t5", "init_std": "xavier"})
    assert plan_of({"name": "t5", "start": "authors"}, {"t5_init_std": 0.5}).label() == (
        "t5(init_std=0.5, scaled=False)"
    )


def test_it_may_stand_at_any_depth():
    t5, kerple = {"name": "t5", "start": "authors"}, {"name": "kerple", "start": "authors"}
    spelled = ({"name": "t5", **scheme("t5").authors}, {"name": "kerple", "shared": True})
    for deep in (
        lambda a, b: ["sinusoidal", a],
        lambda a, b: {"layers": [a, b]},
        lambda a, b: {"heads": [a, b]},
        lambda a, b: ["sinusoidal", {"layers": ["none", {"heads": [a, b]}]}],
    ):
        assert started(deep(t5, kerple)) == deep(*spelled)
        assert parse(deep(t5, kerple)) == parse(deep(*spelled))


def test_a_combination_starts_both_parts(monkeypatch):
    monkeypatch.setattr(ContextualPosition, "authors", {"max_pos": 5, "init_std": 0.1})
    monkeypatch.setattr(Rotary, "authors", {"layout": "half_split", "dim": 4})
    written = {"name": "cope_rotary", "start": "authors", "init_std": 0.0, "rotary_dim": 8}
    assert parse(written) == parse(
        [
            {"name": "cope", "max_pos": 5},
            {"name": "rotary", "layout": "half_split", "dim": 8},
        ]
    )


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"name": "t5", "start": "author"}, "t5_start='author'.*did you mean 'authors'"),
        ({"name": "t5", "start": 3}, "t5_start=3 is not allowed: write start: authors"),
        ({"name": "none", "start": "authors"}, r"authors start 'none' is not known.*'t5'"),
        ({"name": "t5", "start": "authors", "bukets": 3}, "no option 'bukets'"),
        ({"start": "authors"}, "lacks 'name'"),
        (
            {"name": "t5", "start": "authors", "init_std": 1.0, "scaled": True},
            "sets nothing but 't5_init_std' and 't5_scaled', and the position says otherwise",
        ),
    ],
    ids=str,
)
def test_other_starts_and_schemes_without_one_are_refused(position, message):
    with pytest.raises(FlagError, match=message):
        parse(position)


CONFIG = """
model: {dim: 16, depth: 1, heads: 2, position: POSITION}
task: {name: copy}
"""


def test_a_config_holds_the_options_that_it_stands_for(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.replace("POSITION", "[sinusoidal, {name: t5, start: authors}]"))
    config = load_config(file)
    spelled = {"name": "t5", "init_std": "xavier", "scaled": False}
    assert config.model.position == ["sinusoidal", spelled]
    assert config.label() == "sinusoidal+t5(init_std=xavier, scaled=False)"


def test_a_sweep_tries_both_starts(tmp_path):
    file = tmp_path / "config.yaml"
    sweep = "sweep: {model.position: [t5, {name: t5, start: authors}]}\n"
    file.write_text(CONFIG.replace("POSITION", "none") + sweep)
    config = load_config(file, sweep=True)
    labels = [run.label() for run in xcope.config.sweep.expand_sweep(config)]
    assert labels == ["t5", "t5(init_std=xavier, scaled=False)"]


def test_what_is_wrong_with_a_start_is_told_with_its_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.replace("POSITION", "{name: t5, start: x-transformers}"))
    with pytest.raises(ConfigError, match=r"config.yaml:2.*position.start.*write start: authors"):
        load_config(file)
