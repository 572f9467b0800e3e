"""A run that is made longer than it was planned."""

import json
import math
from pathlib import Path

import pytest
from training_runs import (
    At,
    MakeConfig,
    assert_same_run,
    press_ctrl_c,
    results,
    timeless,
    weights,
)  # fmt: skip

from xcope.config import ConfigError, TrainConfig
from xcope.config.schema import Longer
from xcope.training import RunError, RunInterruptedError, to_go_on, train
from xcope.training.schedule import learning_rate


def cosine(step: int, steps: int, warmup: float, lr: float) -> float:
    """A warm-up and a cosine, written another way."""
    first = round(steps * warmup)
    if step < first:
        return lr / first * (step + 1)
    return lr * math.cos(math.pi / 2 * (step - first) / (steps - first)) ** 2


def test_the_rates_after_rewarm_are_those_of_a_second_run_over_the_added_steps():
    train = TrainConfig(
        steps=140, lr=0.5, warmup=0.1, longer=[Longer(how="rewarm", after=100, steps=100)]
    )
    expected = [cosine(s, 100, 0.1, 0.5) for s in range(100)]
    expected += [cosine(s, 40, 0.1, 0.5) for s in range(40)]
    assert [learning_rate(step, train) for step in range(140)] == pytest.approx(expected)


def test_the_rates_after_stretch_are_those_of_a_run_that_was_planned_so_long():
    train = TrainConfig(
        steps=140, lr=0.5, warmup=0.1, longer=[Longer(how="stretch", after=60, steps=100)]
    )
    expected = [cosine(s, 100, 0.1, 0.5) for s in range(60)]
    expected += [cosine(s, 140, 0.1, 0.5) for s in range(60, 140)]
    assert [learning_rate(step, train) for step in range(140)] == pytest.approx(expected)


def test_a_run_may_be_made_longer_again_and_again():
    longer = [
        Longer(how="rewarm", after=50, steps=100),
        Longer(how="stretch", after=120, steps=200),
        Longer(how="rewarm", after=300, steps=300),
    ]
    train = TrainConfig(steps=400, lr=1.0, warmup=0.0, longer=longer)
    expected = [cosine(s, 100, 0.0, 1.0) for s in range(100)]
    expected += [cosine(s - 100, 100, 0.0, 1.0) for s in range(100, 120)]
    expected += [cosine(s - 100, 200, 0.0, 1.0) for s in range(120, 300)]
    expected += [cosine(s - 300, 100, 0.0, 1.0) for s in range(300, 400)]
    assert [learning_rate(step, train) for step in range(400)] == pytest.approx(expected)


@pytest.fixture
def done(tiny: MakeConfig, tmp_path: Path) -> Path:
    """A run of 12 steps that is finished."""
    train(tiny(), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("how", ["rewarm", "stretch"])
def test_a_finished_run_goes_on_and_keeps_its_first_results(done, how):
    first, log = results(done), timeless(done)
    timing = (done / "timing.json").read_text()
    config = to_go_on(done, ["train.steps=20", f"train.longer={how}"])
    result = train(config, done, resume=True)
    assert result.steps == 20
    assert json.loads((done / "results-12.json").read_text()) == first
    assert (done / "timing-12.json").read_text() == timing
    assert results(done)["steps"] == 20
    assert timeless(done)[: len(log)] == log
    rate = {line["step"]: line["lr"] for line in timeless(done)}
    assert rate[20] == pytest.approx(learning_rate(19, config.train))
    again = to_go_on(done)
    assert again == config
    assert train(again, done, resume=True) == result


@pytest.mark.parametrize("how", ["rewarm", "stretch"])
@pytest.mark.parametrize("stop", [13, 17])
def test_it_ends_at_the_same_bits_however_it_is_interrupted(tiny, tmp_path, how, stop):
    longer = ["train.steps=20", f"train.longer={how}"]
    for name in ("whole", "cut"):
        train(tiny(), tmp_path / name)
    train(to_go_on(tmp_path / "whole", longer), tmp_path / "whole", resume=True)
    with pytest.raises(RunInterruptedError):
        train(
            to_go_on(tmp_path / "cut", longer), tmp_path / "cut", resume=True,
            reporter=At(stop, press_ctrl_c),
        )  # fmt: skip
    train(to_go_on(tmp_path / "cut"), tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_rewarm_of_an_unfinished_run_first_does_what_was_planned(tiny, done, tmp_path):
    longer = ["train.steps=20", "train.longer=rewarm"]
    with pytest.raises(RunInterruptedError):
        train(tiny(), tmp_path / "cut", reporter=At(7, press_ctrl_c))
    train(to_go_on(tmp_path / "cut", longer), tmp_path / "cut", resume=True)
    train(to_go_on(done, longer), done, resume=True)
    assert_same_run(done, tmp_path / "cut")


def test_a_run_of_which_nothing_is_done_is_a_run_of_that_length(tiny, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text(tiny().to_yaml())
    config = to_go_on(tmp_path / "new", ["train.steps=20"])
    assert config == tiny("train.steps=20")


def test_more_steps_alone_are_ambiguous_and_the_ways_are_offered(done):
    with pytest.raises(RunError, match=r"falls to 0.*train.longer=rewarm .*train.longer=stretch"):
        to_go_on(done, ["train.steps=20"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.steps=8"], "longer, not shorter; this one is planned for 12, and 12 are done"),
        (["train.longer=rewarm"], "needs train.steps=N, more than 12"),
        (["train.steps=20", "train.longer=constant"], "train.longer=constant is not a way"),
        (["train.lr=0.1"], "train.lr decides what the run is.*'train.steps'"),
        (["model.dim=8"], "model.dim decides"),
        (["out=x"], "out decides"),
        (["train.log_evry=2"], "did you mean 'train.log_every'"),
        (["sweep.train.seed=[1]"], "sweep.train.seed decides"),
    ],
)
def test_what_cannot_change_is_told_by_name_and_the_run_is_as_it_was(done, changes, words):
    before = {file: file.read_bytes() for file in done.rglob("*") if file.is_file()}
    with pytest.raises(RunError, match=words):
        to_go_on(done, changes)
    assert {file: file.read_bytes() for file in done.rglob("*") if file.is_file()} == before


def test_a_wrong_value_is_told_as_anywhere(done):
    with pytest.raises(ConfigError, match=r"train.steps: expected a whole number"):
        to_go_on(done, ["train.steps=many", "train.longer=rewarm"])
    with pytest.raises(ConfigError, match=r"evaluate.splits"):
        to_go_on(done, ["evaluate.splits=[nowhere]"])


def test_longer_is_written_by_going_on_and_not_by_hand(tiny):
    with pytest.raises(
        ConfigError, match=r"train.longer: expected what --resume RUN train.steps=N"
    ):
        tiny("train.longer=rewarm")


def test_what_does_not_touch_the_weights_may_change(done):
    before = weights(done)
    config = to_go_on(done, ["evaluate.batches=3", "train.log_every=1", "train.device=auto"])
    train(config, done, resume=True)
    assert all((before[name] == value).all() for name, value in weights(done).items())
    assert config.evaluate.batches == 3


def test_a_longer_run_cannot_be_smuggled_in(tiny, done):
    """Nobody gets other numbers from a checkpoint without saying how."""
    with pytest.raises(RunError, match=r"train.steps was 12 and is 20"):
        train(tiny("train.steps=20"), done, resume=True)


def test_overwriting_removes_earlier_results_too(tiny, done):
    train(to_go_on(done, ["train.steps=14", "train.longer=stretch"]), done, resume=True)
    train(tiny(), done, overwrite=True)
    assert not [*done.glob("results-*"), *done.glob("timing-*")]
