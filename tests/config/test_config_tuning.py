"""``tune``, ``baseline`` and ``evaluate.splits``: what they expand to and what goes wrong first."""

import pytest

from xcope.config import expand_sweep, expand_tuning, load_config

TUNED = """\
extends: base.yaml
sweep:
  model.position: [none, rotary]
  train.seed: [0, 1]
tune:
  train.lr: [1.0e-3, 2.0e-3]
  seeds: [7, 8]
  steps: 4
baseline: rotary
"""


@pytest.fixture
def tuned(write, base):
    return write("tuned.yaml", TUNED)


def test_a_tuning_run_for_each_scheme_value_and_tuning_seed(tuned):
    runs = expand_tuning(load_config(tuned, sweep=True))
    assert [(run.label(), run.train.lr, run.train.seed) for run in runs] == [
        (scheme, lr, seed)
        for scheme in ("none", "rotary")
        for lr in (1e-3, 2e-3)
        for seed in (7, 8)
    ]


def test_tuning_runs_have_steps_and_data_of_their_own_and_one_split(tuned):
    config = load_config(tuned, sweep=True)
    assert {run.train.steps for run in expand_tuning(config)} == {4}
    assert {run.evaluate.seed for run in expand_tuning(config)} == {2}
    assert {tuple(run.evaluate.splits) for run in expand_tuning(config)} == {("in_distribution",)}
    as_long = load_config(tuned, ["tune.steps=null"], sweep=True)
    assert {run.train.steps for run in expand_tuning(as_long)} == {10}


def test_the_runs_of_the_sweep_do_not_have_it(tuned):
    for run in expand_sweep(load_config(tuned, sweep=True)):
        assert (run.tune, run.baseline, run.train.lr, run.evaluate.seed) == (None, None, 1e-3, 1)


def test_values_of_several_keys_are_combined(tuned):
    config = load_config(tuned, ["tune.train.clip=[0.5, null]", "tune.seeds=[7]"], sweep=True)
    pairs = [(run.train.lr, run.train.clip) for run in expand_tuning(config)]
    assert pairs == [(1e-3, 0.5), (1e-3, None), (2e-3, 0.5), (2e-3, None)] * 2


def test_without_tune_there_is_no_tuning_run(tuned):
    assert expand_tuning(load_config(tuned, ["tune=null"], sweep=True)) == []


def test_it_loads_back_from_its_yaml(tuned, write):
    config = load_config(tuned, sweep=True)
    again = load_config(write("again.yaml", config.to_yaml()), sweep=True)
    assert again == config
    assert expand_tuning(again) == expand_tuning(config)


@pytest.mark.parametrize(
    ("old", "new", "key", "parts"),
    [
        ("seeds: [7, 8]", "seeds: [7, 1]", "tune.seeds", ["(sweep.train.seed, tuned.yaml:4)"]),
        ("seeds: [7, 8]", "evaluate_seed: 1", "tune.evaluate_seed", ["1 is", "(evaluate.seed)"]),
        ("seeds: [7, 8]", "seeds: [7, 7]", "tune.seeds", ["7 stands twice"]),
        ("seeds: [7, 8]", "seeds: []", "tune.seeds", ["expected a list"]),
        ("seeds: [7, 8]", "seeds: [one]", "tune.seeds", ["expected a list", "'one'"]),
        ("steps: 4", "steps: 0", "tune.steps", ["at least 1", "got 0"]),
        ("train.lr: [1.0e-3, 2.0e-3]", "train.lr: 3", "tune.train.lr", ["a list of values, got 3"]),
        ("train.lr: [1.0e-3, 2.0e-3]", "train.lr: []", "tune.train.lr", ["is empty"]),
        ("train.lr: [1.0e-3, 2.0e-3]", "train.lr: [-1]", "train.lr", ["above 0", "tuning run"]),
        ("train.lr:", "train.ls:", "tune.train.ls", ["unknown key 'ls'"]),
        ("train.lr:", "seed:", "tune.seed", ["'seed' cannot be tuned", "'seeds'", "train.lr"]),
        ("train.lr:", "train.seed:", "tune.train.seed", ["cannot be tuned"]),
        ("train.lr:", "model.dim:", "tune.model.dim", ["cannot be tuned"]),
        ("train.seed: [0, 1]", "train.lr: [0.1]", "tune.train.lr", ["sweep.train.lr"]),
        ("  train.lr: [1.0e-3, 2.0e-3]\n", "", "tune", ["nothing to try"]),
    ],
)  # fmt: skip
def test_tuning_that_cannot_be_done(tuned, error, old, new, key, parts):
    text = tuned.read_text()
    assert text.count(old) == 1
    tuned.write_text(text.replace(old, new))
    caught = error(tuned, sweep=True)
    assert caught.key == key
    assert caught.file == "tuned.yaml"
    for part in parts:
        assert part in caught.message, part


def test_the_seed_of_a_config_without_swept_seeds_is_one_of_the_test(tuned, error):
    alone = "train: {seed: 8}\nsweep:\n  model.position: [none]\n"
    tuned.write_text(TUNED.replace(TUNED[TUNED.index("sweep:") : TUNED.index("tune:")], alone))
    message = "tuned.yaml:7: tune.seeds: 8 is a test seed too (train.seed, tuned.yaml:2): "
    assert str(error(tuned, sweep=True)).startswith(message)


def test_a_tuned_key_is_not_overridden_in_vain(tuned, error):
    caught = error(tuned, "train.lr=0.1", sweep=True)
    assert "override 'tune.train.lr' instead" in caught.message


def test_one_run_is_not_tuned(tuned, error):
    caught = error(tuned, "sweep=null", "model.position=none")
    assert caught.key == "tune"
    assert "tune=null" in caught.message


def test_a_run_may_be_measured_on_some_splits(base, error):
    assert load_config(base, ["evaluate.splits=[dense]"]).evaluate.splits == ["dense"]
    caught = error(base, "evaluate.splits=[dence]")
    assert caught.key == "evaluate.splits"
    assert "did you mean 'dense'?" in caught.message


def test_on_text_values_are_picked_on_text_that_no_test_has(tuned):
    config = load_config(tuned, ["task={name: text, length: 8}"], sweep=True)
    assert {tuple(run.evaluate.splits) for run in expand_tuning(config)} == {("validation",)}
    assert load_config(tuned, ["sweep=null", "tune=null", "baseline=null",
                               "task={name: text, length: 8}",
                               "evaluate.splits=[validation]"]).evaluate.splits  # fmt: skip
