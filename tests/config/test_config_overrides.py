"""``key=value`` on the command line."""

import pytest

from xcope.config import load_config


def test_values_are_yaml(base):
    config = load_config(
        base,
        [
            "train.lr=1e-4",
            "train.betas=[0.8, 0.9]",
            "train.precision=no",
            "train.clip=null",
            "model.ff_glu=true",
            "out=runs/a b",
            "model.position={name: cope, max_pos: 8}",
        ],
    )
    assert config.train.lr == 1e-4
    assert config.train.betas == (0.8, 0.9)
    assert config.train.precision == "no"
    assert config.train.clip is None
    assert config.model.flags == {"ff_glu": True}
    assert config.out == "runs/a b"
    assert config.label() == "cope(max_pos=8)"


def test_the_last_one_wins(base):
    assert load_config(base, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize("turn", [1, -1])
def test_the_order_of_name_and_options_does_not_matter(base, turn):
    overrides = ["task.name=counting", "task.length=9"][::turn]
    task = load_config(base, overrides).task
    assert (task.name, task.options) == ("counting", {"length": 9})


def test_another_scheme_drops_the_options_of_the_last(write, base):
    config = write("c.yaml", "extends: base.yaml\nmodel: {position: {name: cope, max_pos: 8}}\n")
    assert load_config(config, ["model.position=rotary"]).label() == "rotary"
    assert load_config(config, ["model.position.soft_onehot=true"]).label() == (
        "cope(max_pos=8, soft_onehot=True)"
    )


def test_null_takes_a_flag_back(write, base):
    config = write("c.yaml", "extends: base.yaml\nmodel: {position: cope, cope_max_pos: 8}\n")
    assert load_config(config, ["model.position=rotary", "model.cope_max_pos=null"]).label() == (
        "rotary"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.steps",
            "command line: 'train.steps' lacks '=': write key=value, for instance "
            "model.position=rotary",
        ),
        (
            "=3",
            "command line: '=3' has no key before '=': write key=value, for instance "
            "model.position=rotary",
        ),
        (
            "train..seed=3",
            "command line: 'train..seed=3' has an empty part in its key: write key=value, for "
            "instance model.position=rotary",
        ),
        (
            "trian.seed=3",
            "command line: trian: unknown key 'trian'; allowed: 'model', 'task', 'train', "
            "'evaluate', 'out', 'sweep', 'tune', 'import' and 'baseline'; did you mean 'train'?",
        ),
        (
            "train.sed=3",
            "command line: train.sed: unknown key 'sed'; allowed: 'steps', 'batch_size', 'lr', "
            "'position_lr_scale', 'betas', 'weight_decay', 'warmup', 'clip', 'seed', 'precision', "
            "'log_every', 'checkpoint_every', 'device', 'track', 'track_project', 'init_from' and "
            "'longer'; did you mean 'seed'?",
        ),
        (
            "train.seed.x=3",
            "command line: train.seed: expected a whole number of at least 0, got {x: 3}",
        ),
    ],
)
def test_overrides_that_cannot_be_used(base, error, override, message):
    assert str(error(base, override)) == message


def test_a_value_that_is_not_yaml(base, error):
    assert str(error(base, "model.dim=[3")).startswith("command line: model.dim: not YAML")


def test_what_an_override_breaks_is_shown_where_it_stands(base, error):
    caught = error(base, "model.heads=3")
    assert (caught.file, caught.line, caught.key) == ("command line", None, "model.heads")


def test_a_missing_key_is_looked_for_in_the_file_not_on_the_command_line(write, error):
    path = write("m.yaml", "model:\n  depth: 1\ntask: flip_flop\n")
    assert str(error(path, "model.depth=2")).startswith("m.yaml:1: model.dim: is missing")
