"""A loaded config: defaults filled in, labels, and YAML that loads back."""

import json
import pickle

import pytest
from pydantic import ValidationError
from schemes import NAMES
from schemes import position as scheme_position

from xcope.config import TrainConfig, load_config


def test_sizes_that_follow_from_others_are_filled_in(base):
    model = load_config(base).model
    assert model.dim_head == 8
    assert model.max_seq_len == 13  # 8 blanks, 2 tokens, the separator, 2 tokens again
    given = load_config(base, ["model.dim_head=4", "model.max_seq_len=20"]).model
    assert (given.dim_head, given.max_seq_len) == (4, 20)
    assert load_config(base, ["model.attn_dim_head=4"]).model.dim_head is None


@pytest.mark.parametrize("position", [*map(scheme_position, NAMES), ["rotary", "none"]], ids=str)
def test_yaml_loads_back_to_the_same_config(base, write, position):
    text = f"model.position={json.dumps(position)}"
    config = load_config(base, [text, "model.depth=2", "model.ff_glu=true", "out='a: b'"])
    again = load_config(write("again.yaml", config.to_yaml()))
    assert again == config
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    "override",
    [
        "model.position={name: cope, max_pos: 8, soft_onehot: true}",
        "model.position=[absolute, {name: cope, max_pos: 8}]",
        "model.position={name: alibi, slopes: [0.5, 1e-3]}",
        "model.attn_use_cope=[true]",
        "train.betas=[0.5, 0.6]",
        "train.clip=null",
        "train.precision=no",
        "train.lr=1e-7",
        "task=counting",
    ],
)
def test_unusual_values_survive_yaml(base, write, override):
    overrides = [override] + ["model.position=null"] * ("use_cope" in override)
    config = load_config(base, overrides)
    assert load_config(write("again.yaml", config.to_yaml())) == config


def test_a_config_is_equal_wherever_it_was_written(base, write):
    moved = write("moved.yaml", "\n\n" + base.read_text())
    assert load_config(moved) == load_config(base)
    assert load_config(moved, ["train.seed=1"]) != load_config(base)


def test_a_config_survives_a_trip_between_processes(base):
    config = load_config(base)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["model.position=none"], "none"),
        (["model.position=cope"], "cope"),
        (["model.position={name: cope, max_pos: 8}"], "cope(max_pos=8)"),
        (["model.position=cope", "model.cope_max_pos=8"], "cope(max_pos=8)"),
        (["model.position=cope_rotary"], "cope+rotary"),
        (["model.position=[absolute, cope]"], "absolute+cope"),
        (["model.position=cope", "model.use_abs_pos_emb=true"], "absolute+cope"),
        (["model.position=null", "model.use_abs_pos_emb=true"], "absolute"),
        (["model.position=null", "model.rotary_pos_emb=true"], "rotary"),
        (["model.position=null", "model.rel_pos_bias=true"], "t5"),
        (["model.position=[rotary, none]", "model.depth=2"], "layers(rotary, none)"),
        (
            ["model.position=[absolute, {heads: [cope, rotary]}]"],
            "heads(absolute+cope, absolute+rotary)",
        ),
        (
            ["model.position=null", "model.attn_use_rel_proj_pos_bias=true"],
            "attn_use_rel_proj_pos_bias",
        ),
    ],
)
def test_the_label_names_the_schemes_that_the_model_has(base, overrides, label):
    assert load_config(base, overrides).label() == label


def test_configs_do_not_change(base):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(base).train.steps = 3


def test_a_section_made_in_python_has_the_same_defaults(base):
    assert TrainConfig(steps=10) == load_config(base).train


def test_every_key_is_explained():
    assert all(field.description for field in TrainConfig.model_fields.values())
