"""Runs on one's own text: a run keeps its tokenizer, goes on bit for bit, and may lose its data."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from corpora import KINDS, write_files

from xcope.config import Config, ConfigError, build_task, load_config
from xcope.data import Source, corpus, load_tokenizer, make_shards
from xcope.data.tokenizer import _cached
from xcope.inspect import trace
from xcope.inspect.labels import token_labels
from xcope.training import (
    RunError,
    RunFolder,
    RunInterruptedError,
    load_run,
    sample,
    train,
)

MODEL = "model: {dim: 16, depth: 1, heads: 2, position: rotary}\n"
TRAIN = """\
train: {steps: 6, batch_size: 2, checkpoint_every: 2, device: cpu}
evaluate: {batches: 1, batch_size: 2}
"""
HOW = {
    "files": "corpus: books, tokenizer: t.json",
    "shards": "corpus: shards",
    "packed": "corpus: shards, packed: true",
    "bytes": "corpus: books",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_files(tmp_path / "books", 12, 1500)
    tokenizer = KINDS["byte_bpe"]()
    tokenizer.add_special_tokens(["<my end>"])
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<my end>"}}')
    make_shards(
        Source(str(tmp_path / "books")), load_tokenizer(str(tmp_path / "t.json")),
        tmp_path / "shards", held_out=0.2, validation=1 / 3,
    )  # fmt: skip
    return tmp_path


def config_of(project: Path, how: str) -> Config:
    path = project / "run.yaml"
    path.write_text(f"{MODEL}task: {{name: text, length: 16, held_out: 0.2, {HOW[how]}}}\n{TRAIN}")
    return load_config(path)


def take_away(project: Path) -> None:
    """All but the run, as a new process finds it."""
    corpus._OPENED.clear()
    _cached.cache_clear()
    for path in project.iterdir():
        if path.name not in ("run", "moved"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("how", HOW)
def test_a_run_opens_where_corpus_and_tokenizer_are_gone_and_it_was_moved(project: Path, how: str):
    config = config_of(project, how)
    task = build_task(config)
    train(config, project / "run")
    _, before = load_run(project / "run")
    text, tokens = "quick füchse", task.encode("quick füchse")
    assert RunFolder(project / "run").holds(config)
    (project / "run").rename(project / "moved")
    take_away(project)
    loaded, model = load_run(project / "moved")
    again = build_task(loaded)
    assert again.encode(text) == tokens
    assert again.decode(tokens) == text
    assert again.num_tokens == model.num_tokens == task.num_tokens
    assert again.reads.separator == task.reads.separator == (0 if how == "bytes" else 300)
    new = sample(model, tokens, 5, temperature=0)
    assert new == sample(before, tokens, 5, temperature=0)
    assert again.decode(tokens + new).startswith(text)
    labels = token_labels(again, tokens)
    assert len(trace(model, torch.tensor([tokens])).layers) == 1
    assert len(labels) == len(tokens)
    assert train(load_config(project / "moved/config.yaml", data=False), project / "moved",
                 resume=True).steps == 6  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_a_run_that_was_stopped_ends_at_the_same_numbers(project: Path, how: str):
    config = config_of(project, how)
    whole = train(config, project / "whole")

    class Stop:
        def step(self, step, loss):
            if step == 3:
                raise KeyboardInterrupt

        def __getattr__(self, name):
            return lambda *args: None

    with pytest.raises((RunInterruptedError, KeyboardInterrupt)):
        train(config, project / "run", reporter=Stop())
    # go on as --resume does, from the folder alone
    resumed = train(load_config(project / "run/config.yaml"), project / "run", resume=True)
    assert resumed.splits == whole.splits
    weights = [load_run(project / name)[1].state_dict() for name in ("whole", "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_does_not_go_on_with_another_tokenizer(project: Path):
    config = config_of(project, "files")
    train(config, project / "run")
    KINDS["byte_bpe"](290).save(str(project / "t.json"))
    corpus._OPENED.clear()
    config = config_of(project, "files")
    assert not RunFolder(project / "run").holds(config)
    with pytest.raises(RunError, match=r"task\.tokenizer was"):
        train(config, project / "run", resume=True)
    # the tokenizer in the folder is as the run had it
    assert build_task(load_run(project / "run")[0]).num_tokens == 301


def test_results_of_tokens_say_bytes_per_token_and_those_of_bytes_are_as_ever(project: Path):
    for how in ("files", "bytes"):
        train(config_of(project, how), project / how)
        results = json.loads((project / how / "results.json").read_text())["splits"]["held_out"]
        assert ("bytes_per_token" in results) == (how == "files")


@pytest.mark.parametrize("data", [True, False])
def test_a_tokenizer_that_is_not_there_is_named_at_its_key(project: Path, data: bool):
    (project / "run.yaml").write_text(
        f"{MODEL}task:\n  name: text\n  corpus: books\n  tokenizer: deep/no.json\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(project / "run.yaml", data=data)
    assert caught.value.key == "task.tokenizer"
    assert caught.value.line == 5
    assert f"there is no file '{project}/deep/no.json'" in str(caught.value)
