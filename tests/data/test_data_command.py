"""``xcope data`` as people type it: info, train-tokenizer, tokenize, and their mistakes."""

import json
from pathlib import Path

import pytest
from corpora import KINDS, write_files

from xcope.cli import run, xcope
from xcope.config import load_config
from xcope.tasks import task
from xcope.training import train

LETTERS = "abcdefghi"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    write_files(tmp_path / "books", 9, 2000)


def said(capsys, *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run(xcope, ["data", *words], prog="xcope") == code
    out, error = capsys.readouterr()
    if code:
        assert error.strip().count("\n") == 0, error
        return error
    return out


def test_from_text_to_a_run(capsys, tmp_path: Path):
    table = said(capsys, "info", "books")
    assert "held_out" in table
    assert "tokenizer: 256 tokens, bytes" in table
    text = said(capsys, "train-tokenizer", "books", "--size", "300", "--out", "mine/t.json")
    assert text.startswith("mine/t.json: 300 tokens")
    text = said(capsys, "tokenize", "books", "--tokenizer", "mine/t.json", "--out", "shards",
                "--held-out", "0.2", "--shard-bytes", "4000")  # fmt: skip
    assert "tokenizer: 300 tokens" in text
    assert "task.corpus=shards" in text
    assert said(capsys, "info", "shards").splitlines()[:8] == text.splitlines()[:8]
    (tmp_path / "run.yaml").write_text(
        "model: {dim: 8, depth: 1, heads: 1, position: none}\n"
        "task: {name: text, length: 16, corpus: shards}\n"
        "train: {steps: 1, batch_size: 2, device: cpu}\nevaluate: {batches: 1, batch_size: 2}\n"
    )
    result = train(load_config("run.yaml"), "run")
    assert result.splits["held_out"]["bytes_per_token"] > 1


def test_the_tokenizer_has_not_seen_what_is_held_out(capsys, tmp_path: Path):
    # a word of a file's own in each; which files are held out is asked of the task
    for file in (tmp_path / "books").iterdir():
        file.write_text(file.read_text() + f"zq{LETTERS[int(file.stem)]}qz " * 200)
    held = task("text", {"corpus": "books", "length": 8})
    words = [f"zq{letter}qz" for letter in LETTERS]
    out = (held.source("validation") + held.source("held_out")).decode()
    said(capsys, "train-tokenizer", "books", "--size", "700", "--out", "t.json")
    vocabulary = json.loads(Path("t.json").read_text())["model"]["vocab"]
    known = {word for word in words if f"Ġ{word}" in vocabulary}
    assert known
    assert not any(word in out for word in known)


def test_the_source_may_be_a_yaml_file(capsys, tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/task.yaml").write_text(
        "task: {name: text, corpus: ../books, glob: '[0-4].txt', held_out: 0.5}\n"
    )
    first = said(capsys, "info", "deep/task.yaml")
    assert said(capsys, "info", "deep/task.yaml", "task.held_out=0.1") != first
    assert said(capsys, "info", "deep/task.yaml", "--held-out", "0.1") != first
    said(capsys, "tokenize", "deep/task.yaml", "--out", "shards")
    assert "task.yaml" in said(capsys, "info", "deep/tusk.yaml", code=2), "the nearest"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("info", "nowhere.txt"), "nowhere.txt' cannot be read: it does not exist"),
        (("info", "books", "task.length=8"), "changes a key of a YAML file"),
        (("info", "counting.yaml"), "task 'counting' has no corpus"),
        (("info", "books", "--held-out", "2"), "held_out=2.0 is not allowed"),
        (("info", "books", "--glob", "*.md"), "no file in"),
        (("info", "books", "--tokenizer", "no.json"), "there is no file"),
        (("tokenize", "books"), "missing option '--out'"),
        (("tokenize", "books", "--out", "books"), "not empty and holds no shards"),
        (("tokenize", "books", "--out", "books/0.txt"), "books/0.txt"),
        (("train-tokenizer", "books", "--out", "x.json", "--size", "10"), "size=10"),
        (("train-tokenizer", "books", "--out", "books"), "is there already"),
        (("train-tokenizer", "books", "--out", "books/0.txt"), "is there already"),
        (("toknize", "books"), "did you mean 'tokenize'"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path: Path, words, message: str):
    Path("counting.yaml").write_text("task: {name: counting}\n")
    assert message in said(capsys, *words, code=2)


def test_shards_are_no_source(capsys):
    said(capsys, "tokenize", "books", "--out", "shards")
    assert "holds shards already" in said(capsys, "tokenize", "shards", "--out", "b", code=2)


def test_a_tokenizer_that_loses_text_is_told(capsys):
    KINDS["lowercase_words"]().save("lower.json")
    text = said(capsys, "info", "books", "--tokenizer", "lower.json")
    assert "the tokenizer changes the text" in text
