"""scripts/evaluate.py: the numbers of a run again, and on other test data."""

import json

import pytest


@pytest.fixture
def run(script, tiny_yaml, tmp_path):
    """The folder of a finished run."""
    assert script("train", tiny_yaml, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_numbers_are_those_of_the_run(script, tiny_yaml, tmp_path, precision):
    options = ("--out", tmp_path / "x", f"train.precision={precision}")
    assert script("train", tiny_yaml, *options).code == 0
    ended = script("evaluate", tmp_path / "x", "--json", tmp_path / "again.json")
    assert ended.code == 0
    assert "in_distribution" in ended.out
    again = json.loads((tmp_path / "again.json").read_text())
    written = json.loads((tmp_path / "x" / "results.json").read_text())
    assert again == {key: written[key] for key in ("splits", "by_position")}


def test_other_lengths_splits_and_data(script, run):
    ended = script(
        "evaluate", run, "sparse", "--json", "-", "task.sparse_blanks=40", "evaluate.seed=9"
    )
    assert list(json.loads(ended.out)["splits"]) == ["sparse"]
    # 40 blanks, a separator and 3 tokens twice
    assert " 47 " in script("evaluate", run, "sparse", "task.sparse_blanks=40").out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("nowhere",), ["nowhere is not a run folder"]),
        (("RUN", "spars"), ["'spars'", "did you mean 'sparse'"]),
        (("RUN", "task.blank=3"), ["task.blank", "'blanks'"]),
        (("RUN", "model.dim=3"), ["model.dim=3", "cannot be changed"]),
        (("RUN", "task.values=9"), ["6 tokens", "11"]),
        (("RUN", "--json", "/nowhere/x.json"), ["/nowhere/x.json"]),
    ],
)
def test_mistakes_end_in_one_line(script, user_error, run, arguments, parts):
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    user_error(script("evaluate", *arguments), *parts)


def test_lengths_that_a_learned_table_cannot_take(script, user_error, tiny_yaml, tmp_path):
    script("train", tiny_yaml, "model.position=absolute", "--out", tmp_path / "x")
    ended = script("evaluate", tmp_path / "x", "task.sparse_blanks=40")
    user_error(ended, "'sparse'", "47 tokens", "max_seq_len")
    short = script("evaluate", tmp_path / "x", "in_distribution", "task.sparse_blanks=40")
    assert short.code == 0


@pytest.mark.parametrize("name", ["curve.svg", "deep/curve.PNG", "curve.pdf"])
def test_a_picture_of_the_metric_by_position_and_length(script, run, tmp_path, name):
    ended = script("evaluate", run, "--plot", tmp_path / name)
    assert ended.code == 0
    assert str(tmp_path / name) in ended.err
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    content = (tmp_path / name).read_bytes()
    assert content.startswith(begins[name[-3:].lower()])
    if name.endswith("svg"):
        for word in ("position in the sequence", "error, %", "in_distribution", "sparse"):
            assert f">{word}<" in content.decode()


def test_a_picture_beside_the_run_and_over_lengths(script, tiny_yaml, tmp_path):
    task = "task={name: parity, length: 4, stretch: 4}"
    assert script("train", tiny_yaml, task, "--out", tmp_path / "x").code == 0
    assert script("evaluate", tmp_path / "x", "--plot").code == 0
    assert (tmp_path / "x" / "evaluate.png").read_bytes().startswith(b"\x89PNG")
    assert script("evaluate", tmp_path / "x", "--plot", tmp_path / "x.svg").code == 0
    assert ">tokens in the sequence<" in (tmp_path / "x.svg").read_text()


def test_one_scored_place_gives_bars(script, tiny_yaml, tmp_path):
    task = "task={name: counting, length: 5}"
    assert script("train", tiny_yaml, task, "--out", tmp_path / "x").code == 0
    splits = ("in_distribution", "longer")
    assert script("evaluate", tmp_path / "x", *splits, "--plot", tmp_path / "x.svg").code == 0
    drawn = (tmp_path / "x.svg").read_text()
    assert all(f">{split}<" in drawn for split in splits)
    assert "position in the sequence" not in drawn


def test_a_picture_that_cannot_be_is_told_before_anything_is_measured(script, user_error, run):
    user_error(script("evaluate", run, "--plot", "sparse"), "--plot sparse", "'.png'", "last")
