"""scripts/train.py: a run from the shell, stopped, gone on with, refused."""

import json
import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

REPO = Path(__file__).parents[2]


def test_a_run_prints_results_and_the_next_commands(script, tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("train", tiny_yaml, "train.seed=2")
    assert ended.code == 0
    folder = "runs/tiny-rotary-seed2"
    assert (tmp_path / folder / "results.json").is_file()
    for part in ("in_distribution", "dense", "sparse", "error %", "rotary"):
        assert part in ended.out
    assert f"python {REPO}/scripts/evaluate.py {folder}" in ended.out
    assert f"python {REPO}/scripts/sample.py {folder}" in ended.out
    assert "step 6/6" in ended.err
    # the commands do what they say
    assert script("evaluate", folder).code == 0
    assert script("sample", folder).code == 0


def test_options_may_stand_anywhere(script, tiny_yaml, tmp_path):
    out = tmp_path / "x"
    ended = script("train", tiny_yaml, "model.position=alibi", "--out", out, "train.seed=1")
    assert ended.code == 0
    config = (out / "config.yaml").read_text()
    assert "position: alibi" in config
    assert "seed: 1" in config


def test_a_stopped_process_saves_and_its_own_advice_goes_on(
    script, start_script, wait_for_steps, tiny_yaml, tmp_path
):
    options = ("train.steps=500", "train.checkpoint_every=0")
    run = tmp_path / "cut"
    process = start_script("train", tiny_yaml, *options, "--out", run, OMP_NUM_THREADS="1")
    wait_for_steps(process, run / "metrics.jsonl", 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    advice = err.strip().splitlines()[-1].split()
    assert advice == ["python", f"{REPO}/scripts/train.py", "--resume", str(run)]

    step = json.loads((run / "checkpoint" / "state.json").read_text())["state"]["step"]
    assert 3 <= step < 500
    ended = script("train", *advice[2:])
    assert ended.code == 0
    assert f"step {step} of 500" in ended.err
    assert script("train", tiny_yaml, *options, "--out", tmp_path / "whole").code == 0
    whole, cut = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "cut")
    )
    assert all(whole[name].equal(cut[name]) for name in whole)
    results = (tmp_path / "whole" / "results.json").read_bytes()
    assert (run / "results.json").read_bytes() == results
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 501))


def test_a_run_that_is_there_is_not_overwritten(script, user_error, tiny_yaml, tmp_path):
    arguments = ("train", tiny_yaml, "--out", tmp_path / "x")
    assert script(*arguments).code == 0
    user_error(script(*arguments), "holds a run already", "--resume", "--overwrite")
    assert script(*arguments, "--overwrite").code == 0


def test_help_shows_examples_that_name_the_script(script):
    for name in ("train", "evaluate", "sample"):
        ended = script(name, "--help")
        assert ended.code == 0
        assert f"examples:\n  python {REPO}/scripts/{name}.py" in ended.out
        configs = re.findall(r"configs/\S+\.yaml", ended.out)
        assert all((REPO / config).is_file() for config in configs)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["name a config"]),
        (("missing.yaml",), ["missing.yaml"]),
        (("TINY", "model.positon=rotary"), ["command line", "model.positon", "'position'"]),
        (("TINY", "train.steps"), ["train.steps"]),
        (("TINY", "model.dim=15"), ["model"]),
        (("TINY", "sweep={train.seed: [0, 1]}"), ["scripts/compare.py"]),
        (("TINY", "--out", "/proc/nowhere"), ["/proc/nowhere"]),
        (("--resume", "nowhere"), ["nowhere is not a run folder"]),
        (("--resume", "nowhere", "x.yaml"), ["--resume takes everything"]),
        (("--unknown",), ["--unknown"]),
    ],
)
def test_mistakes_end_in_one_line(script, user_error, tiny_yaml, arguments, parts):
    arguments = [tiny_yaml if argument == "TINY" else argument for argument in arguments]
    user_error(script("train", *arguments), *parts)


def test_a_process_ends_in_two_without_a_traceback(start_script, user_error, tiny_yaml):
    process = start_script("train", tiny_yaml, "model.heads=0")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("train.py: error: command line: model.heads")
    assert len(err.splitlines()) == 1


def test_a_damaged_checkpoint_ends_in_one_line(script, user_error, tiny_yaml, tmp_path):
    script("train", tiny_yaml, "--out", tmp_path / "x")
    (tmp_path / "x" / "checkpoint" / "model.safetensors").write_bytes(b"nonsense")
    for call in (("train", "--resume"), ("evaluate",), ("sample",)):
        user_error(script(*call, tmp_path / "x"), "model.safetensors", "damaged")


def test_a_diverging_run_says_so_and_ends_in_one(script, tiny_yaml, tmp_path):
    options = ("train.lr=1.0e+30", "train.clip=null", "train.steps=40")
    ended = script("train", tiny_yaml, *options, "--out", tmp_path / "x")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "training stopped at step" in ended.err


def test_a_finished_run_is_made_longer_and_says_what_may_change(
    script, user_error, tiny_yaml, tmp_path
):
    run = tmp_path / "run"
    assert script("train", tiny_yaml, "--out", run).code == 0
    user_error(script("train", "--resume", run, "train.steps=9"), "train.longer=rewarm", "stretch")
    user_error(script("train", "--resume", run, "train.lr=1"), "train.lr", "'train.steps'")
    user_error(script("train", tiny_yaml, "--resume", run), "leave out the config")
    ended = script("train", "--resume", run, "train.steps=9", "train.longer=rewarm")
    assert ended.code == 0
    assert "9 steps" in ended.out
    assert (run / "results-6.json").is_file()
    assert script("train", "--resume", run, "evaluate.batches=1").code == 0


def test_a_warm_start_prints_what_is_taken_over(script, user_error, tiny_yaml, tmp_path):
    assert script("train", tiny_yaml, "--out", tmp_path / "one").code == 0
    init = f"train.init_from={tmp_path / 'one'}"
    ended = script("train", tiny_yaml, init, "model.position=cope", "--out", tmp_path / "two")
    assert ended.code == 0
    assert f"begin as in {tmp_path / 'one'} after step 6" in ended.err
    assert "new: attn_layers.layers.0.1.attend.cope.pos_emb (16 8)" in ended.err
    ended = script("train", tiny_yaml, f"{init}x", "--out", tmp_path / "three")
    user_error(ended, "train.init_from", "there is no folder")
