"""Sampling, gates and evaluation on other data work where the corpus of a run is gone."""

from pathlib import Path

import pytest

from xcope.data import corpus


@pytest.fixture
def run(script, tmp_path: Path) -> Path:
    """A run on a text that was deleted since."""
    words = tmp_path / "words.txt"
    words.write_text("one word after another\n" * 400)
    (tmp_path / "text.yaml").write_text(
        "model: {dim: 16, depth: 1, heads: 2, position: cope}\n"
        "task: {name: text, corpus: $WORDS/words.txt, length: 16}\n"
        "train: {steps: 2, batch_size: 2, device: cpu}\nevaluate: {batches: 1, batch_size: 2}\n"
    )
    ended = script("train", tmp_path / "text.yaml", "--out=~/runs/x")
    assert ended.code == 0, ended.err
    words.unlink()
    corpus._OPENED.clear()  # as in a new process
    return tmp_path / "home" / "runs" / "x"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORDS", str(tmp_path))


def test_what_needs_no_text_works_and_what_does_says_so(run: Path, script, user_error, tmp_path):
    assert (run / "results.json").is_file()
    assert script("sample", run, "--prompt", "one", "--tokens", 3).out.startswith("one")
    assert script("gates", "~/runs/x", "--text", "one word", "--out", "$HOME/gates").code == 0
    assert (tmp_path / "home" / "gates" / "gates.html").is_file()
    (tmp_path / "other.txt").write_text("another word after one\n" * 400)
    other = f"task.corpus={tmp_path}/other.txt"
    assert "held_out" in script("evaluate", run, other).out
    assert script("train", "--resume", run).code == 0, "it is finished, and shows its results"
    user_error(script("sample", run), "words.txt' cannot be read", "--prompt TEXT")
    user_error(script("gates", run), "words.txt' cannot be read", "--text TEXT")
    user_error(script("evaluate", run), "config.yaml:", "task.corpus", "cannot be read")
    user_error(script("sample", "$NOWHERE/x"), "environment variable 'NOWHERE'")
    user_error(script("train", tmp_path / "text.yaml", "--out", "x"), "text.yaml:2: task.corpus")
    assert not Path("~").exists()
