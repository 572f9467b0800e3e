"""An interrupted run goes on from its checkpoint and ends where an uninterrupted one does."""

import signal
from pathlib import Path

import pytest
from training_runs import (
    At,
    MakeConfig,
    assert_same_run,
    assert_same_weights,
    press_ctrl_c,
    timeless,
)

from xcope.training import RunError, RunInterruptedError, train

DROPOUT = ("model.attn_dropout=0.1", "model.ff_dropout=0.1", "model.layer_dropout=0.2")


class CrashError(Exception):
    """Stands for whatever may end a process."""


def crash() -> None:
    raise CrashError


def press_twice() -> None:
    press_ctrl_c()
    press_ctrl_c()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal counts at once."""
    monkeypatch.setattr("xcope.training.loop.PATIENCE", -1.0)


@pytest.mark.parametrize("step", [1, 7, 12])
def test_after_ctrl_c_the_numbers_are_those_of_an_uninterrupted_run(
    tiny: MakeConfig, tmp_path: Path, step: int
):
    config = tiny(*DROPOUT, "model.depth=2")
    train(config, tmp_path / "whole")
    with pytest.raises(RunInterruptedError, match=r"xcope train --resume .*cut"):
        train(config, tmp_path / "cut", reporter=At(step, press_ctrl_c))
    assert not (tmp_path / "cut" / "results.json").exists()
    reporter = At(0, crash)
    train(config, tmp_path / "cut", resume=True, reporter=reporter)
    assert reporter.seen == list(range(step + 1, 13))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_sigterm_saves_too(tiny: MakeConfig, tmp_path: Path):
    terminate = At(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunInterruptedError, match="checkpoint after step 3"):
        train(tiny(), tmp_path / "run", reporter=terminate)
    assert terminate.ended


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_serves(
    tiny: MakeConfig, tmp_path: Path, impatient: None
):
    train(tiny(), tmp_path / "whole")
    with pytest.raises(RunInterruptedError, match="checkpoint after step 5"):
        train(tiny(), tmp_path / "cut", reporter=At(8, press_twice))
    train(tiny(), tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_ctrl_c_before_the_first_checkpoint_says_that_there_is_none(
    tiny: MakeConfig, tmp_path: Path, impatient: None
):
    with pytest.raises(RunInterruptedError, match="before the first checkpoint"):
        train(tiny(), tmp_path / "run", reporter=At(2, press_twice))


def test_a_signal_that_arrives_twice_at_once_is_one(tiny: MakeConfig, tmp_path: Path):
    with pytest.raises(RunInterruptedError, match="checkpoint after step 2"):
        train(tiny(), tmp_path / "run", reporter=At(2, press_twice))


def test_usual_signal_handlers_are_back_after_a_run(tiny: MakeConfig, tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tiny(), tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_after_a_crash_no_step_is_logged_twice(tiny: MakeConfig, tmp_path: Path):
    config = tiny("train.log_every=1")
    train(config, tmp_path / "whole")
    with pytest.raises(CrashError):
        train(config, tmp_path / "cut", reporter=At(9, crash))
    # the process died within a line
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    reporter = At(0, crash)
    train(config, tmp_path / "cut", resume=True, reporter=reporter)
    assert reporter.first == 5
    assert [line["step"] for line in timeless(tmp_path / "cut")] == list(range(1, 13))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resuming_what_never_saved_starts_at_the_beginning(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tiny(), tmp_path / "cut", reporter=At(2, crash))
    train(tiny(), tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resuming_a_finished_run_gives_its_result_and_trains_nothing(
    tiny: MakeConfig, tmp_path: Path
):
    first = train(tiny(), tmp_path / "run")
    files = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    reporter = At(0, crash)
    assert train(tiny(), tmp_path / "run", resume=True, reporter=reporter) == first
    assert reporter.seen == []
    assert {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()} == files


def test_a_finished_run_is_measured_again_on_other_test_data(tiny: MakeConfig, tmp_path: Path):
    first = train(tiny(), tmp_path / "run")
    other = tiny("evaluate.seed=5")
    again = train(other, tmp_path / "run", resume=True)
    assert again.splits != first.splits
    assert again.splits == train(other, tmp_path / "fresh").splits


def test_another_config_is_refused_by_key(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "run")
    with pytest.raises(RunError, match=r"train\.lr was 0\.01 and is 0\.02"):
        train(tiny("train.lr=0.02"), tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"model\.dim was 16 and is 32"):
        train(tiny("model.dim=32"), tmp_path / "run", resume=True)


def test_keys_that_do_not_touch_the_weights_may_change(tiny: MakeConfig, tmp_path: Path):
    train(tiny(), tmp_path / "whole")
    with pytest.raises(RunInterruptedError):
        train(tiny(), tmp_path / "cut", reporter=At(6, press_ctrl_c))
    other = tiny("train.log_every=1", "train.checkpoint_every=0", "train.device=auto")
    train(other, tmp_path / "cut", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_bf16_resumes_to_the_same_numbers(tiny: MakeConfig, tmp_path: Path):
    config = tiny("train.precision=bf16")
    train(config, tmp_path / "whole")
    with pytest.raises(RunInterruptedError):
        train(config, tmp_path / "cut", reporter=At(7, press_ctrl_c))
    train(config, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tiny: MakeConfig, tmp_path: Path, file: str):
    with pytest.raises(RunInterruptedError):
        train(tiny(), tmp_path / "run", reporter=At(7, press_ctrl_c))
    path = tmp_path / "run" / "checkpoint" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"{file} is damaged"):
        train(tiny(), tmp_path / "run", resume=True)
    path.unlink()
    with pytest.raises(RunError, match=rf"{file} is missing"):
        train(tiny(), tmp_path / "run", resume=True)


def test_resume_and_overwrite_exclude_each_other(tiny: MakeConfig, tmp_path: Path):
    with pytest.raises(RunError, match="exclude each other"):
        train(tiny(), tmp_path / "run", resume=True, overwrite=True)
