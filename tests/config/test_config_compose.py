"""``extends``: where files are found, who wins, and what goes wrong."""

import pytest

from xcope.config import Mark
from xcope.config.compose import compose


def test_later_files_win_and_the_file_itself_last(write):
    write("one.yaml", "train: {steps: 1, lr: 0.1, seed: 1}\n")
    write("two.yaml", "train: {steps: 2, lr: 0.2}\n")
    top = write("top.yaml", "extends: [one.yaml, two.yaml]\ntrain: {steps: 3}\n")
    assert compose(top).plain() == {"train": {"steps": 3, "lr": 0.2, "seed": 1}}


def test_each_key_keeps_the_place_where_it_was_written(write):
    write("one.yaml", "train:\n  lr: 0.1\n  steps: 5\n")
    tree = compose(write("top.yaml", "extends: one.yaml\ntrain:\n  steps: 3\n"))
    assert tree.mark_of(("train", "lr")) == Mark("one.yaml", 2)
    assert tree.mark_of(("train", "steps")) == Mark("top.yaml", 3)


def test_lists_are_replaced(write):
    write("one.yaml", "train: {betas: [0.9, 0.95]}\n")
    top = write("top.yaml", "extends: one.yaml\ntrain: {betas: [0.8, 0.9]}\n")
    assert compose(top).plain()["train"]["betas"] == [0.8, 0.9]


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ("{name: cope, max_pos: 64}", "rotary", "rotary"),
        ("{name: cope, max_pos: 64}", "{name: rotary, dim: 4}", {"name": "rotary", "dim": 4}),
        (
            "{name: cope, max_pos: 64}",
            "{name: cope, soft_onehot: true}",
            {"name": "cope", "max_pos": 64, "soft_onehot": True},
        ),
        ("{name: cope, max_pos: 64}", "{max_pos: 8}", {"name": "cope", "max_pos": 8}),
        ("{name: cope, max_pos: 64}", "cope", {"name": "cope", "max_pos": 64}),
        ("cope", "{max_pos: 8}", {"name": "cope", "max_pos": 8}),
        ("cope", "{name: rotary, dim: 4}", {"name": "rotary", "dim": 4}),
        ("{name: cope, max_pos: 64}", "[absolute, cope]", ["absolute", "cope"]),
        ("[absolute, cope]", "rotary", "rotary"),
        ("cope", "null", None),
    ],
)
def test_another_scheme_does_not_inherit_options(write, old, new, merged):
    write("one.yaml", f"model: {{position: {old}}}\n")
    top = write("top.yaml", f"extends: one.yaml\nmodel: {{position: {new}}}\n")
    assert compose(top).plain()["model"]["position"] == merged


def test_another_task_does_not_inherit_options(write):
    write("one.yaml", "task: {name: counting, length: 9}\n")
    other = write("other.yaml", "extends: one.yaml\ntask: {name: flip_flop}\n")
    same = write("same.yaml", "extends: one.yaml\ntask: {variables: 3}\n")
    assert compose(other).plain() == {"task": {"name": "flip_flop"}}
    assert compose(same).plain() == {"task": {"name": "counting", "length": 9, "variables": 3}}


def test_files_are_found_beside_then_in_configs_then_in_the_repository(write):
    write("configs/part.yaml", "out: outer\n")
    top = write("configs/deep/top.yaml", "extends: part.yaml\n")
    assert compose(top).plain() == {"out": "outer"}
    write("configs/deep/part.yaml", "out: beside\n")
    assert compose(top).plain() == {"out": "beside"}
    elsewhere = write("my.yaml", "extends: models/tiny.yaml\n")
    assert compose(elsewhere).plain()["model"]["dim"] == 64


def test_two_files_may_share_a_base(write):
    write("base.yaml", "train: {steps: 1}\n")
    write("left.yaml", "extends: base.yaml\nout: left\n")
    write("right.yaml", "extends: base.yaml\nout: right\n")
    top = write("top.yaml", "extends: [left.yaml, right.yaml]\n")
    assert compose(top).plain() == {"train": {"steps": 1}, "out": "right"}


def test_a_missing_file_is_named_with_the_nearest(write, error):
    write("configs/models/tiny.yaml", "")
    top = write("configs/x.yaml", "out: a\nextends:\n  - models/tny.yaml\n")
    message = str(error(top))
    assert message.startswith("configs/x.yaml:3: extends: there is no file 'models/tny.yaml' in ")
    assert message.endswith("; did you mean 'models/tiny.yaml'?")


def test_a_missing_config_is_named_with_the_nearest(base, error):
    assert str(error("bas.yaml")) == "bas.yaml: there is no such file; did you mean 'base.yaml'?"


def test_a_cycle_shows_its_chain(write, error):
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "train: {steps: 1}\nextends: [c.yaml]\n")
    write("c.yaml", "extends: b.yaml\n")
    assert str(error("a.yaml")) == (
        "c.yaml:1: extends: the files extend each other in a cycle: b.yaml → c.yaml → b.yaml"
    )


def test_a_file_that_extends_itself_is_a_cycle(write, error):
    path = write("a.yaml", "extends: a.yaml\n")
    assert str(error(path)).endswith("in a cycle: a.yaml → a.yaml")


def test_extends_must_be_paths(write, error):
    path = write("a.yaml", "extends:\n  - b: 1\n")
    assert str(error(path)) == ("a.yaml:2: extends: expected a file or a list of files, got {b: 1}")
