"""Sweeps: which runs they stand for, in which order, and what goes wrong before any of them."""

import pytest

from xcope.compare.run.plan import plan
from xcope.config import ConfigError, expand_sweep, load_config

SWEEP = """\
extends: base.yaml
sweep:
  model.position:
    - none
    - {name: cope, max_pos: 8}
  train.seed: [0, 1]
"""


@pytest.fixture
def swept(write, base):
    return write("swept.yaml", SWEEP)


def test_a_run_for_each_combination_the_first_key_slowest(swept):
    runs = expand_sweep(load_config(swept, sweep=True))
    assert [(run.label(), run.train.seed) for run in runs] == [
        ("none", 0), ("none", 1), ("cope(max_pos=8)", 0), ("cope(max_pos=8)", 1),
    ]  # fmt: skip
    assert all(run.sweep == {} and run.model.dim_head == 8 for run in runs)


def test_a_run_is_what_the_same_overrides_give(swept):
    last = expand_sweep(load_config(swept, sweep=True))[-1]
    alone = ["sweep=null", "model.position={name: cope, max_pos: 8}", "train.seed=1"]
    assert load_config(swept, alone) == last


def test_values_add_to_the_options_of_the_same_scheme(write, base):
    text = (
        "extends: base.yaml\n"
        "model: {position: {name: cope, soft_onehot: true}}\n"
        "sweep: {model.position.max_pos: [4, 8]}\n"
    )
    runs = expand_sweep(load_config(write("s.yaml", text), sweep=True))
    assert [run.label() for run in runs] == [
        f"cope(max_pos={max_pos}, soft_onehot=True)" for max_pos in (4, 8)
    ]


def test_the_position_may_come_from_the_sweep_alone(write, base):
    text = "extends: base.yaml\nmodel: {position: null}\nsweep: {model.position: [none]}\n"
    (run,) = expand_sweep(load_config(write("s.yaml", text), sweep=True))
    assert run.label() == "none"


def test_without_a_sweep_there_is_one_run(base):
    config = load_config(base, sweep=True)
    assert expand_sweep(config) == [config]


def test_the_sweep_can_be_changed_on_the_command_line(swept):
    config = load_config(swept, ["sweep.train.seed=[5]", "train.steps=3"], sweep=True)
    assert [run.train.seed for run in expand_sweep(config)] == [5, 5]
    assert {run.train.steps for run in expand_sweep(config)} == {3}


def test_a_sweep_loads_back_from_its_yaml(swept, write):
    config = load_config(swept, sweep=True)
    again = load_config(write("again.yaml", config.to_yaml()), sweep=True)
    assert again == config
    assert expand_sweep(again) == expand_sweep(config)


def test_a_copy_that_was_changed_expands_as_it_is_now(swept):
    config = load_config(swept, sweep=True)
    copy = config.model_copy(update={"sweep": {"train.seed": [7]}})
    assert [run.train.seed for run in expand_sweep(copy)] == [7]


def test_one_run_cannot_have_a_sweep(swept, error):
    assert str(error(swept)) == (
        "swept.yaml:2: sweep: a sweep is many runs, but this is for one: use xcope compare, "
        "or drop the sweep with sweep=null"
    )
    assert load_config(swept, ["sweep=null"]).sweep == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  train.seed: [0, 1]",
            "  train.sed: [0, 1]",
            "swept.yaml:6: sweep.train.sed: unknown key 'sed'; allowed: 'steps', 'batch_size', "
            "'lr', 'position_lr_scale', 'betas', 'weight_decay', 'warmup', 'clip', 'seed', "
            "'precision', 'log_every', "
            "'checkpoint_every', 'device', 'track', 'track_project', 'init_from' and 'longer'; "
            "did you mean 'seed'?",
        ),
        (
            "  train.seed: [0, 1]",
            "  trian.seed: [0, 1]",
            "swept.yaml:6: sweep.trian.seed: unknown key 'trian.seed'; a sweep sets keys of "
            "'model', 'task', 'train' and 'evaluate', for instance 'train.seed'; did you mean "
            "'train'?",
        ),
        (
            "  train.seed: [0, 1]",
            "  out: [a, b]",
            "swept.yaml:6: sweep.out: unknown key 'out'; a sweep sets keys of 'model', 'task', "
            "'train' and 'evaluate', for instance 'train.seed'",
        ),
        (
            "  train.seed: [0, 1]",
            "  train.seed: []",
            "swept.yaml:6: sweep.train.seed: the list of values is empty",
        ),
        (
            "  train.seed: [0, 1]",
            "  train.seed: [1, 0, 1]",
            "swept.yaml:6: sweep.train.seed: 1 stands twice in the list",
        ),
        (
            "  train.seed: [0, 1]",
            "  train.seed: 3",
            "swept.yaml:6: sweep.train.seed: expected a list of values, got 3",
        ),
        (
            "  train.seed: [0, 1]",
            "  train.seed: [0, one]",
            "swept.yaml:6: train.seed: expected a whole number of at least 0, got 'one' (in the "
            "sweep's run model.position='none' train.seed='one')",
        ),
        (
            "max_pos: 8",
            "max_pos: 0",
            "swept.yaml:5: model.position.max_pos: cope_max_pos=0 is not allowed: it must be at "
            "least 1, or 'block': as many as tokens of a row in training (in the sweep's run "
            "model.position={name: 'cope', max_pos: 0} train.seed=0)",
        ),
        (SWEEP.partition("sweep:")[2], " 3\n", "swept.yaml:2: sweep: expected a mapping, got 3"),
    ],
)
def test_a_sweep_that_cannot_be_run(swept, error, old, new, message):
    text = swept.read_text()
    assert text.count(old) == 1
    swept.write_text(text.replace(old, new))
    assert str(error(swept, sweep=True)) == message


def test_an_option_is_checked_against_every_scheme_of_the_sweep(swept, write, error):
    path = write("top.yaml", "extends: swept.yaml\nmodel: {cope_soft_onehot: true}\n")
    message = str(error(path, sweep=True))
    assert message.startswith("top.yaml:2: model.cope_soft_onehot: ")
    assert message.endswith("(in the sweep's run model.position='none' train.seed=0)")


@pytest.mark.parametrize("override", ["train.seed=3", "model.position=alibi", "train={seed: 3}"])
def test_a_swept_key_is_not_overridden_in_vain(swept, error, override):
    caught = error(swept, override, sweep=True)
    assert str(caught).startswith("command line: ")
    assert "override 'sweep." in caught.message
    assert "swept.yaml:" in caught.message


TASKS = """\
extends: base.yaml
sweep:
  task: [counting, {name: flip_flop, instructions: 6}, {name: copy, length: 4}]
  model.position: [none, cope]
"""


def test_a_sweep_over_tasks_names_each_with_its_options(write, base, tmp_path):
    config = load_config(write("tasks.yaml", TASKS), sweep=True)
    found = [(run.task.name, run.task.options) for run in expand_sweep(config)]
    assert found[::2] == [
        ("counting", {}),
        ("flip_flop", {"instructions": 6}),
        ("copy", {"length": 4}),
    ]
    runs = plan(config, tmp_path / "out")
    assert [run.task for run in runs[::2]] == [
        "counting", "flip_flop(instructions=6)", "copy(length=4)",
    ]  # fmt: skip
    assert {run.variant for run in runs} == {"none", "cope"}


def test_what_a_swept_task_is_told_is_checked_and_stays_the_sweeps(write, base):
    wrong = write("wrong.yaml", TASKS.replace("length", "lenght"))
    with pytest.raises(ConfigError, match="did you mean 'length'"):
        load_config(wrong, sweep=True)
    with pytest.raises(ConfigError, match=r"override 'sweep\.task' instead"):
        load_config(write("tasks.yaml", TASKS), ["task.length=3"], sweep=True)


def test_paths_of_swept_tasks_begin_at_the_file_that_names_them(write, base, tmp_path):
    (tmp_path / "own.txt").write_text("abc" * 500)
    text = "{name: text, corpus: own.txt, length: 8}"
    config = load_config(write("x.yaml", TASKS.replace("counting", text)), sweep=True)
    assert config.sweep["task"][0]["corpus"] == str(tmp_path / "own.txt")
    assert expand_sweep(config)[0].task.options["corpus"] == str(tmp_path / "own.txt")
